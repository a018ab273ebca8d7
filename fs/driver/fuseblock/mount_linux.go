package fuseblock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/fusesession"
	"github.com/lazyerofs/lazyerofs/fs/driver/lifetime"
	"github.com/lazyerofs/lazyerofs/fs/driver/mountproc"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// mount is one mounted layer.
type mount struct {
	*lifetime.Mount
	d     *Driver
	file  *file  // nil: complete when it was mounted
	super string // of a complete layer
}

func (d *Driver) newMount(target string) *mount {
	m := &mount{d: d}
	m.Mount = d.watchers.Mount(lifetime.Config{Target: target, Ended: m.ended, Down: ErrShutdown})
	return m
}

// ended waits for the end of the connection, which the kernel tells: the superblock
// held its last open file; or for that of a superblock that needs none.
func (m *mount) ended() bool {
	if m.file == nil {
		return m.d.watchers.Await(func() bool { return !erofs.SuperblockAlive(m.super) })
	}
	return m.d.ended(m.file)
}

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
	m := d.newMount(target)
	if lifetime.Closed(l.Complete()) {
		return m, m.plain(ctx, l)
	}
	f, err := d.serveNew(ctx, fusesession.NewName(SessionName(l.ID(), target)), l)
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
		d.ended(f)
		return nil, err
	}
	m.Watch()
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

// ended waits for the end of a connection; false when Shutdown came first, and a
// successor sees it.
func (d *Driver) ended(f *file) bool {
	select {
	case <-f.session.Done():
		d.forget(f)
		return true
	case <-d.watchers.Stopping():
		return false
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

// plain makes the kernel mount the files of a complete layer. They are read through
// their own page cache, which has what was just fetched, and with read-ahead across
// small files: O_DIRECT halves the speed of both.
func (m *mount) plain(ctx context.Context, l driver.Layer) (err error) {
	conf := m.d.mountConfig()
	conf.DirectIO = false
	conf.Target = m.Target()
	if conf.Source, conf.Devices, err = lifetime.Paths(l.Data(), l.Meta()); err != nil {
		return err
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
	m := d.newMount(target)
	var err error
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
	case lifetime.Closed(l.Complete()):
		// Only now: to open the root of a mount that waits to be taken over may need
		// its extended attributes, so it would wait for us.
		m.super, err = erofs.SuperblockOf(target)
		if errors.Is(err, unix.ENOTTY) {
			err = ErrNotKept // and nobody can tell when it ends
		}
		return m, err
	default:
		return nil, ErrNotKept
	}
	m.Watch()
	return m, nil
}

func (d *Driver) isDown() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.down
}
