package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

// scratchDir holds what a bench needs while it runs.
const scratchDir = "/var/tmp"

// resultsDir is where results go unless a flag says otherwise.
var resultsDir = filepath.Join("tests", "bench", "results")

const usage = `Usage: bench [starts|drivers|memory|convert|pull|shared] [flags]

  starts    cold starts of images, lazyerofs against overlayfs (the default)
  drivers   reads through each driver, cold, resident and complete, against a
            plain mount of the same image
  memory    the daemon's memory with many layers mounted
  convert   tar to native layer, against mkfs.erofs and zstd; with -size, one
            generated layer of that size in bounded memory
  shared    what two releases of an image have in common
  pull      a plain image taken in by lazyerofs, overlayfs and containerd's erofs

Examples:

  go run ./tests/bench                                  every image over every line
  go run ./tests/bench -images go -lines lan -rounds 9  one of them, more often
  go run ./tests/bench drivers                          every driver that works here
  go run ./tests/bench drivers -drivers fanotify -work random-8,exec
  go run ./tests/bench memory -layers 100 -files 10000
  go run ./tests/bench convert -images go -inputs tar
  go run ./tests/bench convert -size 10G
  go run ./tests/bench pull -lines lan

"bench drivers -h" and the like list the flags. All of it needs root and what
"make deps containerd tools build" brings, empties the machine's caches, and wants a
machine that does nothing else.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run does what the first argument names; without a name it measures starts.
func run(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	verb := "starts"
	if len(args) > 0 && (args[0] == "" || args[0][0] != '-') {
		verb, args = args[0], args[1:]
	} else if len(args) > 0 && (args[0] == "-h" || args[0] == "-help" || args[0] == "--help") {
		verb = "help"
	}
	switch verb {
	case "starts":
		return runStarts(ctx, args, out)
	case "drivers":
		return runDrivers(ctx, args, out)
	case "memory":
		return runMemory(ctx, args, out)
	case "convert":
		return runConvert(ctx, args, out)
	case "pull":
		return runPull(ctx, args, out)
	case "shared":
		return runShared(ctx, args, out)
	case readerVerb:
		return serveJob(ctx, in, out)
	case layerVerb:
		return serve(ctx, in, out, convertLayer)
	case digestVerb:
		return serve(ctx, in, out, digests)
	case applyVerb:
		return serve(ctx, in, out, applyLayer)
	case "help":
		fmt.Fprint(out, usage)
		return nil
	}
	return fmt.Errorf("no bench named %q; there are starts, drivers, memory, convert, pull and shared", verb)
}

// flags returns an empty set for the named bench that explains itself.
func flags(verb string) *flag.FlagSet {
	f := flag.NewFlagSet("bench "+verb, flag.ContinueOnError)
	f.Usage = func() {
		fmt.Fprintf(f.Output(), "%s\nFlags of %s:\n", usage, verb)
		f.PrintDefaults()
	}
	return f
}

// onlyFlags parses arguments of which all must be flags.
func onlyFlags(f *flag.FlagSet, args []string) error {
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q; see %s -h", f.Arg(0), f.Name())
	}
	return nil
}

// checkImages refuses names that no recipe has.
func checkImages(names []string) error {
	for _, name := range names {
		if recipes[name] == nil {
			return fmt.Errorf("no image named %q; there are python, go and node", name)
		}
	}
	return nil
}
