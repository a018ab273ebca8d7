package fanotify

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// mount is one mounted layer.
type mount struct {
	d      *Driver
	target string
	layer  driver.Layer
	guard  *guard // nil: complete when it was mounted
	super  string // erofs-<n>
	done   chan struct{}
	state  state // under Driver.mu
}

type state uint8

const (
	mounted state = iota
	closing
	released
)

// mount makes the kernel mount m, whose guard stands. The kernel opens the files
// by path: a descriptor that it were handed would be one from before the mark.
func (d *Driver) mount(ctx context.Context, m *mount, l driver.Layer) error {
	source, err := dataPath(l.Data())
	if err != nil {
		return err
	}
	conf := erofs.MountConfig{
		Source: source, Target: m.target,
		DirectIO: d.conf.DirectIO, ReadAheadKB: d.conf.ReadAheadKB,
		// Whoever shows the layer to a container sets the flags; a single layer
		// that is bound as it is has only these.
		Suid: true, Dev: true,
	}
	if meta := l.Meta(); meta != nil {
		conf.Devices = []string{source}
		if conf.Source, err = dataPath(meta); err != nil {
			return err
		}
	}
	info, err := erofs.Mount(ctx, conf)
	if err != nil {
		return err
	}
	m.settle(info.Superblock)
	return nil
}

func (m *mount) settle(super string) {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	m.super = super
}

// undo gives up a mount that did not come to be.
func (m *mount) undo() error {
	m.d.mu.Lock()
	delete(m.d.mounts, m)
	m.state = closing
	m.d.mu.Unlock()
	if m.guard == nil {
		return nil
	}
	return m.d.release(m.guard, true)
}

// Target returns the mount point.
func (m *mount) Target() string { return m.target }

// Done is closed when no superblock holds the layer any more.
func (m *mount) Done() <-chan struct{} { return m.done }

// Close detaches the mount from its target. Whoever still reads goes on
// reading; Done says when nobody does.
func (m *mount) Close(context.Context) error {
	d := m.d
	if ok, err := m.closing(); !ok {
		return err
	}
	err := unix.Unmount(m.target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	gone := errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) // unmounted by someone else
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil && !gone {
		m.state = mounted
		return fmt.Errorf("unmounting %s: %w", m.target, err)
	}
	if d.down {
		return fmt.Errorf("unmounting %s: %w", m.target, ErrShutdown)
	}
	d.owned.Go(m.finish)
	return nil
}

// closing claims the mount for Close; false when there is nothing to do.
func (m *mount) closing() (bool, error) {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	switch {
	case m.state == closing:
		return false, nil
	case m.state == released || m.d.down:
		return false, fmt.Errorf("unmounting %s: %w", m.target, ErrShutdown)
	}
	m.state = closing
	return true, nil
}

// finish waits for the last reader and lets go.
func (m *mount) finish() {
	d := m.d
	if !d.awaitGone(m.super) {
		return // a successor finds the mark and the kept writer
	}
	if m.guard != nil {
		if err := d.release(m.guard, true); err != nil {
			d.trouble("letting go of "+m.target, err)
		}
	}
	d.mu.Lock()
	delete(d.mounts, m)
	d.mu.Unlock()
	close(m.done)
}

// Release leaves the mount to a successor. It is meant for after Shutdown;
// before it, events of the layer are still served.
func (m *mount) Release() error {
	m.d.mu.Lock()
	if m.state != mounted {
		m.d.mu.Unlock()
		return nil
	}
	m.state = released
	m.d.mu.Unlock()
	if m.guard == nil {
		return nil
	}
	return m.d.release(m.guard, false)
}

// awaitGone waits until the superblock is gone; false when Shutdown came first.
func (d *Driver) awaitGone(super string) bool {
	return d.awaitThat(func() bool { return !erofs.SuperblockAlive(super) })
}

// awaitThat waits until it is so; false when Shutdown came first. The kernel
// tells nobody, so this looks, ever less often.
func (d *Driver) awaitThat(so func() bool) bool {
	delay := 2 * time.Millisecond
	t := time.NewTimer(delay)
	defer t.Stop()
	for !so() {
		t.Reset(delay)
		select {
		case <-d.stopping:
			return false
		case <-t.C:
		}
		delay = min(2*delay, time.Second)
	}
	return true
}
