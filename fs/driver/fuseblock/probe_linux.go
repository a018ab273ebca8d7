package fuseblock

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/kernel"
)

// probeWait bounds everything that a probe waits for.
const probeWait = 20 * time.Second

// Probe makes a mount of a small EROFS image below a FUSE file, as Mount does, and
// has a file of it read. The mount is attached nowhere and the image is in memory:
// a FUSE file hides where its data is, and should this process be killed, nothing
// stays. So the directory does not matter.
func (d *Driver) Probe(string) error {
	if err := kernel.HaveFUSE(); err != nil {
		return err
	}
	const what = "mounting EROFS from a FUSE file"
	fd, err := unix.MemfdCreate("probe-fuseblock", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	data := os.NewFile(uintptr(fd), "probe-fuseblock")
	defer data.Close()
	image, name, want := kernel.ProbeImage()
	if _, err := data.Write(image); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	l := &probeLayer{data: data, never: make(chan struct{})}
	loop, err := choose(d.conf.LoopDevices, func(loop bool) error { return d.try(l, loop, name, want) })
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

func (d *Driver) try(l driver.Layer, loop bool, name string, want []byte) error {
	ctx, cancel := context.WithTimeout(d.ctx, probeWait)
	defer cancel()
	conf := d.conf
	conf.Keeper, conf.Inherited, conf.LoopDevices = nobody{}, nil, loop
	probe, err := New(ctx, conf)
	if err != nil {
		return err
	}
	f, err := probe.serveNew(ctx, "probe", l)
	if err != nil {
		return errors.Join(err, probe.Shutdown(ctx))
	}
	made, err := probe.superblock(ctx, f, l, name)
	if err == nil {
		if !bytes.Equal(made.Content, want) {
			err = fmt.Errorf("the mount works but reads return wrong bytes: %w", kernel.ErrNotSupported)
		}
		err = errors.Join(err, made.Mount.Close())
	}
	err = errors.Join(err, f.session.Detach())
	select {
	case <-f.session.Done():
	case <-ctx.Done():
		err = errors.Join(err, ctx.Err())
	}
	return errors.Join(err, probe.Shutdown(ctx))
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
