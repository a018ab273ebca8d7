package fuseblock

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// mount is one mounted layer.
type mount struct {
	d      *Driver
	target string
	file   *file  // nil: complete when it was mounted
	super  string // of a complete layer
	done   chan struct{}

	mu    sync.Mutex
	state state
}

type state uint8

const (
	mounted state = iota
	closing
	released
)

// Mount mounts a layer whose metadata is resident. A complete layer is mounted
// straight from its files, and this process has nothing more to do with it.
func (d *Driver) Mount(ctx context.Context, target string, l driver.Layer) (driver.Mount, error) {
	m, err := d.mount(ctx, target, l)
	if err != nil {
		return nil, fmt.Errorf("mounting layer %s at %s: %w", l.ID(), target, err)
	}
	return m, nil
}

func (d *Driver) mount(ctx context.Context, target string, l driver.Layer) (*mount, error) {
	if d.isDown() {
		return nil, ErrShutdown
	}
	m := &mount{d: d, target: target, done: make(chan struct{})}
	if completed(l) {
		path, err := pathOf(l.Data())
		if err != nil {
			return nil, err
		}
		return m, m.mount(ctx, path, l)
	}
	f, err := d.serveNew(ctx, SessionName(l.ID(), target), l)
	if err != nil {
		return nil, err
	}
	m.file = f
	err = m.mount(ctx, f.path(), l)
	// From here on only the superblock, if there is one, holds the connection.
	if err = errors.Join(err, f.session.Detach()); err != nil {
		<-f.session.Done()
		d.forget(f)
		return nil, err
	}
	d.watch(m)
	return m, nil
}

// mount makes the kernel mount the layer, with its data at path. A metadata
// image is local and whole, so it needs no connection.
func (m *mount) mount(ctx context.Context, path string, l driver.Layer) error {
	conf := erofs.MountConfig{
		Source: path, Target: m.target,
		DirectIO: m.d.conf.DirectIO, ReadAheadKB: m.d.conf.ReadAheadKB, Loop: m.d.loop(),
		LoopDirect: m.file != nil, // one missing range must not hold up the others
		// Whoever shows the layer to a container sets the flags; a single layer
		// that is bound as it is has only these.
		Suid: true, Dev: true,
	}
	if meta := l.Meta(); meta != nil {
		conf.Devices = []string{path}
		var err error
		if conf.Source, err = pathOf(meta); err != nil {
			return err
		}
	}
	info, err := erofs.Mount(ctx, conf)
	m.super = info.Superblock
	return err
}

// Adopt takes over a predecessor's mount; without its connection, the layer
// must have been complete when it was mounted.
func (d *Driver) Adopt(_ context.Context, target string, l driver.Layer) (driver.Mount, error) {
	m, err := d.adopt(target, l)
	if err != nil {
		return nil, fmt.Errorf("adopting layer %s at %s: %w", l.ID(), target, err)
	}
	return m, nil
}

// ErrNotKept reports a mount whose connection was not inherited: it ended with
// its server, and the layer must be mounted again.
var ErrNotKept = errors.New("the FUSE connection of the mount was not kept")

func (d *Driver) adopt(target string, l driver.Layer) (*mount, error) {
	m := &mount{d: d, target: target, done: make(chan struct{})}
	var err error
	if m.super, err = erofs.SuperblockOf(target); err != nil && !errors.Is(err, unix.ENOTTY) {
		return nil, err
	}
	name := SessionName(l.ID(), target)
	d.mu.Lock()
	defer d.mu.Unlock()
	switch f := d.orphans[name]; {
	case d.down:
		return nil, ErrShutdown
	case f != nil: // after Settle
		if err := f.show(l); err != nil {
			return nil, err
		}
		delete(d.orphans, name)
		m.file = f
	case d.waiting[name]:
		if m.file, err = d.take(name, l.ID(), l); err != nil {
			return nil, err
		}
	case completed(l) && m.super != "":
		return m, nil
	default:
		return nil, ErrNotKept
	}
	d.watch(m)
	return m, nil
}

// watch ends the mount when its connection ends, which the kernel tells: the
// superblock held its last open file.
func (d *Driver) watch(m *mount) {
	d.owned.Go(func() {
		select {
		case <-m.file.session.Done():
			d.forget(m.file)
			close(m.done)
		case <-d.ctx.Done():
		}
	})
}

func (d *Driver) isDown() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.down
}

// Target returns the mount point.
func (m *mount) Target() string { return m.target }

// Done is closed when no superblock holds the layer any more.
func (m *mount) Done() <-chan struct{} { return m.done }

// Close detaches the mount from its target. Whoever still reads goes on
// reading; Done says when nobody does.
func (m *mount) Close(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.state == closing:
		return nil
	case m.state == released || m.d.isDown():
		return fmt.Errorf("unmounting %s: %w", m.target, ErrShutdown)
	}
	err := unix.Unmount(m.target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	gone := errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) // unmounted by someone else
	if err != nil && !gone {
		return fmt.Errorf("unmounting %s: %w", m.target, err)
	}
	m.state = closing
	if m.file == nil {
		m.d.owned.Go(m.awaitGone)
	}
	return nil
}

// awaitGone waits for the end of a superblock that needs no connection. The
// kernel tells nobody, so this looks, ever less often.
func (m *mount) awaitGone() {
	delay := 2 * time.Millisecond
	t := time.NewTimer(delay)
	defer t.Stop()
	for erofs.SuperblockAlive(m.super) {
		t.Reset(delay)
		select {
		case <-m.d.ctx.Done():
			return
		case <-t.C:
		}
		delay = min(2*delay, time.Second)
	}
	close(m.done)
}

// Release leaves the mount to a successor. It is meant for after Shutdown;
// before it, reads of the layer are still served.
func (m *mount) Release() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state == mounted {
		m.state = released
	}
	return nil
}
