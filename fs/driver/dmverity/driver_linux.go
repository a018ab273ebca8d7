package dmverity

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/dmverity"
	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/lifetime"
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
	watchers    *lifetime.Watchers
}

var _ driver.Driver = (*Driver)(nil)

// New returns the driver. readAheadKB is the read-ahead of its mounts in KiB; 0
// leaves the kernel's.
func New(readAheadKB int) *Driver {
	return &Driver{readAheadKB: readAheadKB, watchers: lifetime.NewWatchers()}
}

// Name returns "dmverity".
func (d *Driver) Name() string { return Name }

// Probe reads through a device on a file in cacheDir. See driver.Driver.
func (d *Driver) Probe(cacheDir string) error { return dmverity.Probe(cacheDir) }

// For reports whether l is a layer for this driver, just now.
func (d *Driver) For(l driver.Layer) bool {
	return lifetime.Closed(l.Complete()) && driver.Verity(l) != nil && l.Meta() == nil
}

// Mount mounts a complete layer. An image that does not have the root that the
// layer names gives an error, since the superblock cannot be read.
func (d *Driver) Mount(ctx context.Context, target string, l driver.Layer) (driver.Mount, error) {
	if !d.For(l) {
		return nil, fmt.Errorf("mounting layer %s at %s: %w", l.ID(), target, ErrNotForIt)
	}
	data, err := lifetime.Path(l.Data())
	if err != nil {
		return nil, fmt.Errorf("mounting layer %s at %s: %w", l.ID(), target, err)
	}
	info, err := MountFile(ctx, data, erofs.MountConfig{
		Target: target, ReadAheadKB: d.readAheadKB,
		// As the driver of lazy layers has it.
		Suid: true, Dev: true,
	}, *driver.Verity(l))
	if err != nil {
		return nil, fmt.Errorf("mounting layer %s at %s: %w", l.ID(), target, err)
	}
	return d.newMount(target, info.Superblock), nil
}

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
	if !d.watchers.Stop() {
		return ErrShutdown
	}
	d.watchers.Wait()
	return nil
}

// newMount is a mount that lives until its superblock is gone, after Close.
func (d *Driver) newMount(target, super string) driver.Mount {
	return d.watchers.Mount(lifetime.Config{
		Target: target, Down: ErrShutdown,
		Ended: func() bool {
			return d.watchers.Await(func() bool { return !erofs.SuperblockAlive(super) })
		},
	})
}
