package fuseblock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/mountproc"
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
		return m, m.plain(ctx, l)
	}
	f, err := d.serveNew(ctx, keptName(SessionName(l.ID(), target)), l)
	if err != nil {
		return nil, err
	}
	m.file = f
	made, err := d.superblock(ctx, f, l, "")
	if err == nil {
		_, err = erofs.Attach(made.Mount, made.Superblock, target)
		err = errors.Join(err, made.Mount.Close())
	}
	if err = errors.Join(err, f.session.Detach()); err != nil {
		d.abandon(f)
		return nil, err
	}
	d.watch(m)
	return m, nil
}

// superblock makes a mount of the file that f shows, attached nowhere, by a process
// of its own: it reads the file, and we answer. From then on only the superblock
// holds the connection. read is a file whose content is wanted too. A metadata
// image is local and whole, so it needs no connection.
func (d *Driver) superblock(ctx context.Context, f *file, l driver.Layer, read string) (mountproc.Made, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(d.ctx, cancel)() // nobody would answer after Shutdown
	root, err := f.session.Root()
	if err != nil {
		return mountproc.Made{}, err
	}
	defer root.Close()
	conf := d.mountConfig()
	conf.LoopDirect = true // one missing range must not hold up the others
	conf.Source = filepath.Join(mountproc.Path(0), fileName)
	files := []*os.File{root}
	if meta := l.Meta(); meta != nil {
		files = append(files, meta)
		conf.Source, conf.Devices = mountproc.Path(1), []string{conf.Source}
	}
	return mountproc.Run(ctx, mountproc.Order{EROFS: &conf, Read: read, Files: files, Abort: f.session.Abort})
}

// abandon waits for the end of a connection that nothing holds any more.
func (d *Driver) abandon(f *file) {
	select {
	case <-f.session.Done():
		d.forget(f)
	case <-d.ctx.Done(): // a successor sees it end
	}
}

func (d *Driver) mountConfig() erofs.MountConfig {
	return erofs.MountConfig{
		DirectIO: d.conf.DirectIO, ReadAheadKB: d.conf.ReadAheadKB, Loop: d.loop(),
		// Whoever shows the layer to a container sets the flags; a single layer
		// that is bound as it is has only these.
		Suid: true, Dev: true,
	}
}

// plain makes the kernel mount the files of a complete layer.
func (m *mount) plain(ctx context.Context, l driver.Layer) (err error) {
	conf := m.d.mountConfig()
	conf.Target = m.target
	if conf.Source, err = pathOf(l.Data()); err != nil {
		return err
	}
	if meta := l.Meta(); meta != nil {
		conf.Devices = []string{conf.Source}
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
	d.mu.Lock()
	defer d.mu.Unlock()
	name := d.inherited(SessionName(l.ID(), target))
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
