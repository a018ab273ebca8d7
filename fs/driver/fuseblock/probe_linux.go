package fuseblock

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/kernel"
)

// probeWait bounds everything that a probe waits for.
const probeWait = 20 * time.Second

// Probe mounts a small EROFS image below a FUSE file, as Mount does, and reads a
// file of it. The data file is in cacheDir.
func (d *Driver) Probe(cacheDir string) error {
	if err := kernel.HaveFUSE(); err != nil {
		return err
	}
	const what = "mounting EROFS from a FUSE file"
	dir, err := os.MkdirTemp(cacheDir, ".probe-fuseblock-")
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer os.RemoveAll(dir)
	loop, err := choose(d.conf.LoopDevices, func(loop bool) error { return d.try(dir, loop) })
	if err != nil {
		return fmt.Errorf("%s: %w", what, kernel.EROFSRefusal(err))
	}
	d.loopDevices.Store(loop)
	return nil
}

// choose finds out whether loop devices are needed. Kernels that mount files
// refuse some that are on FUSE, each in its own way (before 6.13), so any
// failure makes it try the other way; the error is that of the first.
func choose(always bool, try func(loop bool) error) (loop bool, err error) {
	if !always {
		if err = try(false); err == nil {
			return false, nil
		}
	}
	last := try(true)
	if last == nil {
		return true, nil
	}
	if err == nil {
		err = last
	}
	return false, err
}

func (d *Driver) try(dir string, loop bool) error {
	image, name, want := kernel.ProbeImage()
	data, err := os.OpenFile(filepath.Join(dir, "image"), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer data.Close()
	if _, err := data.Write(image); err != nil {
		return err
	}
	target := filepath.Join(dir, "mount")
	if err := os.Mkdir(target, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	ctx, cancel := context.WithTimeout(d.ctx, probeWait)
	defer cancel()
	conf := d.conf
	conf.Keeper, conf.Inherited, conf.LoopDevices = nobody{}, nil, loop
	probe, err := New(ctx, conf)
	if err != nil {
		return err
	}
	m, err := probe.Mount(ctx, target, &probeLayer{data: data, never: make(chan struct{})})
	if err != nil {
		return errors.Join(err, probe.Shutdown(ctx))
	}
	got, err := readOnce(ctx, filepath.Join(target, name))
	if err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("the mount works but reads return wrong bytes: %w", kernel.ErrNotSupported)
	}
	err = errors.Join(err, m.Close(ctx))
	select {
	case <-m.Done():
	case <-ctx.Done():
		err = errors.Join(err, ctx.Err())
	}
	return errors.Join(err, probe.Shutdown(ctx))
}

// readOnce reads a file, and gives up waiting with ctx; the reader is then
// freed by the end of the probe's connection.
func readOnce(ctx context.Context, path string) ([]byte, error) {
	type answer struct {
		b   []byte
		err error
	}
	c := make(chan answer, 1)
	go func() {
		b, err := readFile(path)
		c <- answer{b, err}
	}()
	select {
	case a := <-c:
		return a.b, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func readFile(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	return io.ReadAll(f)
}

// nobody keeps nothing: a probe has no successor.
type nobody struct{}

func (nobody) Put(string, *os.File) error { return nil }
func (nobody) Remove(string) error        { return nil }

// probeLayer is resident and never complete, so that it is served.
type probeLayer struct {
	data  *os.File
	never chan struct{}
}

func (*probeLayer) ID() string                                 { return "probe" }
func (*probeLayer) Meta() *os.File                             { return nil }
func (l *probeLayer) Data() *os.File                           { return l.data }
func (*probeLayer) Resident(int64, int64) bool                 { return true }
func (*probeLayer) Ensure(context.Context, int64, int64) error { return nil }
func (l *probeLayer) Complete() <-chan struct{}                { return l.never }

func (l *probeLayer) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return l.data.ReadAt(p, off)
}

var _ driver.Layer = (*probeLayer)(nil)
