package dmverity

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/dmverity"
	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// Name is the driver's.
const Name = "dmverity"

// ErrNotForIt marks a layer that is not complete or has no hash tree.
var ErrNotForIt = errors.New("the layer is not complete or has no hash tree")

// ErrShutdown reports a call after Shutdown.
var ErrShutdown = errors.New("the dmverity driver is shut down")

// Driver mounts complete layers through dm-verity. It is safe for concurrent use.
type Driver struct {
	readAheadKB int

	mu       sync.Mutex
	down     bool
	stopping chan struct{}
	watchers sync.WaitGroup
}

var _ driver.Driver = (*Driver)(nil)

// New returns the driver. readAheadKB is the read-ahead of its mounts in KiB; 0
// leaves the kernel's.
func New(readAheadKB int) *Driver {
	return &Driver{readAheadKB: readAheadKB, stopping: make(chan struct{})}
}

// Name returns "dmverity".
func (d *Driver) Name() string { return Name }

// Probe reads through a device on a file in cacheDir. See driver.Driver.
func (d *Driver) Probe(cacheDir string) error { return dmverity.Probe(cacheDir) }

// For reports whether l is a layer for this driver, just now.
func (d *Driver) For(l driver.Layer) bool {
	select {
	case <-l.Complete():
		return driver.Verity(l) != nil && l.Meta() == nil
	default:
		return false
	}
}

// Mount mounts a complete layer. An image that does not have the root that the
// layer names gives an error, since the superblock cannot be read.
func (d *Driver) Mount(ctx context.Context, target string, l driver.Layer) (driver.Mount, error) {
	if !d.For(l) {
		return nil, fmt.Errorf("mounting layer %s at %s: %w", l.ID(), target, ErrNotForIt)
	}
	info, err := MountFile(ctx, dataPath(l.Data()), erofs.MountConfig{
		Target: target, ReadAheadKB: d.readAheadKB,
		// As the driver of lazy layers has it.
		Suid: true, Dev: true,
	}, *driver.Verity(l))
	if err != nil {
		return nil, fmt.Errorf("mounting layer %s at %s: %w", l.ID(), target, err)
	}
	return d.newMount(target, info.Superblock), nil
}

// dataPath is a path by which the kernel opens the file of f anew.
func dataPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// MountFile mounts the image in the complete file at path, which ends in the tree
// that v describes, as c says; its Source is not looked at.
func MountFile(ctx context.Context, path string, c erofs.MountConfig, v chunk.Verity) (info erofs.MountInfo, err error) {
	dev, err := dmverity.Open(path, v)
	if err != nil {
		return info, err
	}
	c.Source = dev.Path()
	info, err = erofs.Mount(ctx, c)
	mounted := err == nil
	if err = errors.Join(err, dev.Release()); err != nil && mounted {
		err = errors.Join(err, unix.Unmount(info.Target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW))
	}
	return info, err // the mount alone holds the device now
}

// Adopt takes over the mount that a predecessor made.
func (d *Driver) Adopt(_ context.Context, target string, l driver.Layer) (driver.Mount, error) {
	super, err := erofs.SuperblockOf(target)
	if err != nil {
		return nil, fmt.Errorf("adopting layer %s at %s: %w", l.ID(), target, err)
	}
	return d.newMount(target, super), nil
}

// Shutdown ends what waits for superblocks. Mounts stay.
func (d *Driver) Shutdown(context.Context) error {
	d.mu.Lock()
	if d.down {
		d.mu.Unlock()
		return ErrShutdown
	}
	d.down = true
	close(d.stopping)
	d.mu.Unlock()
	d.watchers.Wait()
	return nil
}

// mount is one mounted layer.
type mount struct {
	d      *Driver
	target string
	super  string
	done   chan struct{}
	closed bool // under Driver.mu
}

func (d *Driver) newMount(target, super string) driver.Mount {
	return &mount{d: d, target: target, super: super, done: make(chan struct{})}
}

// Target returns the mount point.
func (m *mount) Target() string { return m.target }

// Done is closed after Close, when the last superblock is gone.
func (m *mount) Done() <-chan struct{} { return m.done }

// Release leaves the mount to a successor.
func (m *mount) Release() error { return nil }

// Close detaches the mount from its target.
func (m *mount) Close(context.Context) error {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	if m.closed {
		return nil
	}
	if m.d.down {
		return fmt.Errorf("unmounting %s: %w", m.target, ErrShutdown)
	}
	err := unix.Unmount(m.target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // somebody else did
		return fmt.Errorf("unmounting %s: %w", m.target, err)
	}
	m.closed = true
	m.d.watchers.Go(m.finish)
	return nil
}

// finish waits for the last user of the superblock. The kernel tells nobody, so
// this looks, ever less often.
func (m *mount) finish() {
	delay := 2 * time.Millisecond
	t := time.NewTimer(delay)
	defer t.Stop()
	for erofs.SuperblockAlive(m.super) {
		t.Reset(delay)
		select {
		case <-m.d.stopping:
			return
		case <-t.C:
		}
		delay = min(2*delay, time.Second)
	}
	close(m.done)
}
