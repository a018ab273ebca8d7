package fanotify

import (
	"context"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/lifetime"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// mount is one mounted layer.
type mount struct {
	*lifetime.Mount
	d     *Driver
	guard *guard // nil: complete when it was mounted
	super string // erofs-<n>
}

func (d *Driver) newMount(target string) *mount {
	m := &mount{d: d}
	m.Mount = d.watchers.Mount(lifetime.Config{Target: target, Ended: m.ended, Down: ErrShutdown})
	return m
}

// mount makes the kernel mount m, whose guard stands. The kernel opens the files
// by path: a descriptor that it were handed would be one from before the mark.
func (d *Driver) mount(ctx context.Context, m *mount, l driver.Layer) error {
	source, devices, err := lifetime.Paths(l.Data(), l.Meta())
	if err != nil {
		return err
	}
	conf := erofs.MountConfig{
		Source: source, Devices: devices, Target: m.Target(),
		DirectIO: d.conf.DirectIO, ReadAheadKB: d.conf.ReadAheadKB,
		// Whoever shows the layer to a container sets the flags; a single layer
		// that is bound as it is has only these.
		Suid: true, Dev: true,
	}
	info, err := erofs.Mount(ctx, conf)
	m.super = info.Superblock
	return err
}

// undo gives up a mount that did not come to be.
func (m *mount) undo() error {
	if m.guard == nil {
		return nil
	}
	return m.d.release(m.guard, true)
}

// ended waits for the last reader and lets go.
func (m *mount) ended() bool {
	d := m.d
	if !d.watchers.Await(func() bool { return !erofs.SuperblockAlive(m.super) }) {
		return false // a successor finds the mark and the kept writer
	}
	if m.guard != nil {
		if err := d.release(m.guard, true); err != nil {
			d.trouble("letting go of "+m.Target(), err)
		}
	}
	return true
}

// Release leaves the mount to a successor. It is meant for after Shutdown;
// before it, events of the layer are still served.
func (m *mount) Release() error {
	if !m.Leave() || m.guard == nil {
		return nil
	}
	return m.d.release(m.guard, false)
}
