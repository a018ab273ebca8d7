package drivertest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/driver"
)

// serveEnv makes a child of the test binary a daemon that adopts a mount and
// never answers a read that needs a fill; its value is an order.
const serveEnv = "DRIVERTEST_SERVE"

// firstFD is the first descriptor of a child beyond the standard ones.
const firstFD = 3

// order is what such a child needs to know.
type order struct {
	Harness    string
	Target, ID string
	Data, Meta string   // paths
	Split      bool     // of the image, which is built again
	Names      []string // of the inherited descriptors, from firstFD on
}

// What a child says.
const (
	saysServing = "serving"
	saysTaken   = "taken"
)

// serve is the main of the child.
func serve(text string, harnesses []Harness) error {
	var o order
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	i := slices.IndexFunc(harnesses, func(h Harness) bool { return h.Name == o.Harness })
	if i < 0 {
		return fmt.Errorf("no harness %q was given to Main", o.Harness)
	}
	h := harnesses[i]
	inherited := driver.Inheritance{}
	for i, name := range o.Names {
		inherited[name] = append(inherited[name], os.NewFile(uintptr(firstFD+i), name))
	}
	img, err := BuildImage(imageSeed, o.Split)
	if err != nil {
		return err
	}
	var data, meta *os.File
	if h.DataOf != nil {
		data = h.DataOf(inherited, o.ID)
	} else if data, err = os.OpenFile(o.Data, os.O_RDWR, 0); err != nil {
		return err
	}
	if o.Meta != "" {
		if meta, err = os.Open(o.Meta); err != nil {
			return err
		}
	}
	l := OpenLayer(o.ID, img, data, meta)
	l.Hold()
	d := h.New(&childTB{}, &Keeper{}, inherited)
	if _, err := d.Adopt(context.Background(), o.Target, l); err != nil {
		return err
	}
	go func() { // the end of its parent is its own
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1) //nolint:forbidigo // this is the main of the child
	}()
	fmt.Fprintln(os.Stdout, saysServing)
	<-l.Held()
	fmt.Fprintln(os.Stdout, saysTaken)
	select {} // until it is killed
}

// childTB is a testing.TB for a process that runs no test.
type childTB struct{ testing.TB }

func (*childTB) Helper()                    {}
func (*childTB) Cleanup(func())             {}
func (*childTB) Context() context.Context   { return context.Background() }
func (*childTB) Logf(f string, args ...any) { fmt.Fprintf(os.Stderr, f+"\n", args...) }
func (t *childTB) Errorf(f string, a ...any) {
	t.Logf(f, a...)
}
func (*childTB) FailNow() { panic("the child failed") }

// daemon is a child that serves the mount of a law.
type daemon struct {
	cmd  *exec.Cmd
	says *bufio.Reader
}

// startDaemon lets a child adopt the mount, which nobody serves.
func (e *env) startDaemon() *daemon {
	e.Helper()
	inherited, err := e.keeper.Inherited()
	require.NoError(e, err)
	o := order{
		Harness: e.h.Name, Target: e.target, ID: e.layer.ID(), Data: e.layer.Data().Name(), Split: e.img.Meta != nil,
	}
	if e.layer.Meta() != nil {
		o.Meta = e.layer.Meta().Name()
	}
	self, err := os.Executable()
	require.NoError(e, err)
	cmd := exec.CommandContext(e.ctx, self)
	for name, files := range inherited {
		for _, f := range files {
			o.Names = append(o.Names, name)
			cmd.ExtraFiles = append(cmd.ExtraFiles, f)
		}
	}
	text, err := json.Marshal(o)
	require.NoError(e, err)
	cmd.Env = append(os.Environ(), serveEnv+"="+string(text))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(e, err)
	_, err = cmd.StdinPipe() // closed by Wait, or with this process
	require.NoError(e, err)
	require.NoError(e, cmd.Start())
	for _, f := range cmd.ExtraFiles {
		require.NoError(e, f.Close())
	}
	d := &daemon{cmd: cmd, says: bufio.NewReader(out)}
	e.Cleanup(func() {
		if cmd.ProcessState == nil { // the law failed
			_ = d.kill()
		}
	})
	require.NoError(e, d.await(saysServing))
	return d
}

// await waits for a line.
func (d *daemon) await(want string) error {
	line, err := d.says.ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if strings.TrimSpace(line) != want {
		return fmt.Errorf("the child says %q, not %q", line, want)
	}
	return nil
}

func (d *daemon) kill() error {
	if err := d.cmd.Process.Kill(); err != nil {
		return err
	}
	err := d.cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return fmt.Errorf("the child was not killed: %w", err)
}

// killedDaemon: what a daemon had taken when it was killed, twice in a row, is
// answered with the right bytes by its successor.
func killedDaemon(e *env) {
	names := []string{"dir0/file9", "dir2/file8", "sparse", "small/100"}
	require.NoError(e, e.compare(e.target, "dir1/file7"))
	require.NoError(e, e.driver.Shutdown(e.ctx))
	require.NoError(e, e.mount.Release())
	errs := make(chan error, len(names))
	for i := range 2 {
		d := e.startDaemon()
		if i == 0 {
			for _, name := range names {
				go func() { errs <- e.compare(e.target, name) }()
			}
		}
		require.NoError(e, d.await(saysTaken))
		require.NoError(e, d.kill())
	}
	e.succeed()
	for range names {
		require.NoError(e, <-errs)
	}
	for _, name := range e.paths() {
		require.NoError(e, e.compare(e.target, name))
	}
}
