package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// options are the flags.
type options struct {
	image    string
	cmd      []string
	hostsDir string
	forbid   []string
	line     testenv.Profile
}

// errLeft marks what could not be stopped or removed.
var errLeft = errors.New("not all that was started could be taken away")

// cleaned is err as the outcome of a clean-up.
func cleaned(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", errLeft, err)
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case err != nil && ctx.Err() != nil && !errors.Is(err, errLeft):
		fmt.Fprintln(os.Stderr, "demo: interrupted; nothing is left running or mounted")
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func parse(args []string) (options, error) {
	o := options{line: testenv.Profile{RTT: 10 * time.Millisecond, BytesPerSecond: 100_000_000}}
	var bandwidth int64
	f := flag.NewFlagSet("demo", flag.ContinueOnError)
	f.StringVar(&o.image, "image", "", "reference of an image to use instead of the one that is built")
	f.StringVar(&o.hostsDir, "hosts-dir", "/etc/containerd/certs.d", "directory with HOST/hosts.toml, for -image")
	forbid := f.String("forbid", "", "drivers that lazyerofs must not use, with commas between them")
	f.DurationVar(&o.line.RTT, "rtt", o.line.RTT, "round trip of the line")
	f.Int64Var(&bandwidth, "bandwidth", 100, "of the line, MB/s")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	o.line.BytesPerSecond = bandwidth * 1_000_000
	o.cmd = f.Args()
	o.forbid = strings.FieldsFunc(*forbid, func(r rune) bool { return r == ',' })
	if o.image != "" && len(o.cmd) == 0 {
		return o, fmt.Errorf("an image of your own needs a command that ends: add CMD='...'")
	}
	return o, nil
}

// base is where demos are, on a disk; a test has its own.
var base = "/var/tmp"

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	o, err := parse(args)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("it mounts file systems and drops caches; run it as root")
	}
	dir, err := os.MkdirTemp(base, "lazyerofs-demo-")
	if err != nil {
		return fmt.Errorf("making a directory for the demo: %w", err)
	}
	defer func() { err = errors.Join(err, cleaned(os.RemoveAll(dir))) }()
	d := &demo{options: o, dir: dir, out: out}
	return d.run(ctx)
}
