package cachefiles

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/lifetime"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// kernelWait bounds the wait for the kernel to open the objects of a new
// superblock, and to close those of one that is gone. Either takes milliseconds; an
// object that was lost is never closed.
const kernelWait = 10 * time.Second

// mount is one mounted layer.
type mount struct {
	*lifetime.Mount
	d     *Driver
	plan  *plan  // nil: the data file itself is mounted
	super string // below /sys/fs/erofs
}

func (d *Driver) newMount(target string) (*mount, error) {
	target, err := filepath.Abs(target)
	if err != nil {
		return nil, err
	}
	m := &mount{d: d}
	m.Mount = d.watchers.Mount(lifetime.Config{Target: target, Ended: m.ended, Down: ErrShutdown})
	return m, nil
}

// Mount mounts a layer whose metadata is resident. A complete layer is mounted
// from its data file where the kernel can, and needs nobody then.
func (d *Driver) Mount(ctx context.Context, target string, l driver.Layer) (driver.Mount, error) {
	m, err := d.mount(ctx, target, l)
	if err != nil {
		return nil, fmt.Errorf("mounting layer %s at %s: %w", l.ID(), target, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mounts[m] = struct{}{}
	return m, nil
}

func (d *Driver) mount(ctx context.Context, target string, l driver.Layer) (*mount, error) {
	m, err := d.newMount(target)
	if err != nil {
		return nil, err
	}
	if lifetime.Closed(l.Complete()) {
		err := m.plain(ctx, l)
		if !errors.Is(err, erofs.ErrNeedsBlockDevice) {
			return m, err
		}
	}
	if d.conf.Dir == "" {
		return nil, errors.New("the driver was given no directory for the kernel's cache")
	}
	if m.plan, err = newPlan(d.conf.Dir, base(l.ID()), l); err != nil {
		return nil, err
	}
	if err := d.protect(m.plan); err != nil {
		return nil, errors.Join(err, m.plan.close())
	}
	m.super = domain + "," + m.plan.keys[0]
	ready := func() error { return d.awaitOpen(ctx, m.plan.keys) }
	if err := attach(ctx, m.plan.keys, m.Target(), d.conf.ReadAheadKB, ready); err != nil {
		why := d.refusal(m.plan.keys)
		gone, goErr := m.letGo()
		if !gone {
			goErr = errors.Join(goErr, m.plan.close())
		}
		return nil, errors.Join(err, why, goErr)
	}
	return m, nil
}

// plain mounts the data file.
func (m *mount) plain(ctx context.Context, l driver.Layer) error {
	source, devices, err := lifetime.Paths(l.Data(), l.Meta())
	if err != nil {
		return err
	}
	info, err := erofs.Mount(ctx, erofs.MountConfig{
		Source: source, Devices: devices, Target: m.Target(), ReadAheadKB: m.d.conf.ReadAheadKB,
		// Nothing has to be told of its reads, so that a loop device will do.
		Loop: erofs.LoopFallback,
		Suid: true, Dev: true,
	})
	m.super = info.Superblock
	return err
}

// Adopt takes over a predecessor's mount, whose cookie keys mountinfo shows.
// Without the predecessor's device the error wraps ErrCacheLost.
func (d *Driver) Adopt(_ context.Context, target string, l driver.Layer) (driver.Mount, error) {
	m, err := d.adopt(target, l)
	if err != nil {
		return nil, fmt.Errorf("adopting layer %s at %s: %w", l.ID(), target, err)
	}
	return m, nil
}

func (d *Driver) adopt(target string, l driver.Layer) (*mount, error) {
	m, err := d.newMount(target)
	if err != nil {
		return nil, err
	}
	key, err := fsidAt(m.Target())
	if err != nil {
		return nil, err
	}
	if key == "" { // it was complete when it was mounted
		if m.super, err = erofs.SuperblockOf(m.Target()); err != nil {
			return nil, err
		}
	} else {
		b, id, ok := splitKey(key)
		if !ok || id != l.ID() {
			return nil, fmt.Errorf("it is a mount of %q", key)
		}
		m.super = domain + "," + key
		if m.plan, err = newPlan(d.conf.Dir, b, l); err != nil {
			return nil, err
		}
		if m.plan.keys[0] != key {
			return nil, errors.Join(fmt.Errorf("it is a mount of %q, not of %q", key, m.plan.keys[0]), m.plan.close())
		}
	}
	if err := d.takeOver(m); err != nil {
		if m.plan != nil {
			err = errors.Join(err, m.plan.close())
		}
		return nil, err
	}
	return m, nil
}

// takeOver gives the cookies of an inherited mount their sources.
func (d *Driver) takeOver(m *mount) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.down:
		return ErrShutdown
	case m.plan == nil:
		d.mounts[m] = struct{}{}
		return nil
	case !d.kept:
		return ErrCacheLost
	}
	for i, k := range m.plan.keys {
		g := d.guards[k]
		if g == nil {
			// Its object was lost; the kernel opens it again when it is read.
			g = newGuard(k, nil)
			d.guards[k] = g
		}
		g.settle(m.plan.sources[i])
	}
	d.mounts[m] = struct{}{}
	return nil
}

// fsidAt returns the option fsid of the mount at target, "" if it has none.
func fsidAt(target string) (string, error) {
	infos, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(target))
	if err != nil {
		return "", fmt.Errorf("looking at mount point %s: %w", target, err)
	}
	if len(infos) == 0 {
		return "", fmt.Errorf("nothing is mounted at %s", target)
	}
	// The last one lies on top.
	for o := range strings.SplitSeq(infos[len(infos)-1].VFSOptions, ",") {
		if v, ok := strings.CutPrefix(o, "fsid="); ok {
			return v, nil
		}
	}
	return "", nil
}

// ended waits for the last reader and lets go.
func (m *mount) ended() bool {
	d := m.d
	if !d.watchers.Await(func() bool { return !m.alive() }) {
		return false // a successor finds the kept objects
	}
	gone, err := m.letGo()
	if err != nil {
		d.trouble("letting go of "+m.Target(), err)
	}
	if gone {
		d.mu.Lock()
		delete(d.mounts, m)
		d.mu.Unlock()
	}
	return gone
}

// alive reports whether the superblock exists.
func (m *mount) alive() bool {
	if m.plan == nil {
		return erofs.SuperblockAlive(m.super)
	}
	_, err := os.Stat(filepath.Join("/sys/fs/erofs", m.super))
	return !errors.Is(err, os.ErrNotExist)
}

// letGo ends what serves a superblock that is gone, or never came to be: the
// kernel closes its objects, then what is kept goes, then the cache files. false
// when Shutdown came first and a successor is to be told.
func (m *mount) letGo() (bool, error) {
	if m.plan == nil {
		return true, nil
	}
	d := m.d
	limit := time.NewTimer(kernelWait)
	defer limit.Stop()
	for _, closed := range d.idle(m.plan.keys) {
		select {
		case <-closed:
		case <-d.watchers.Stopping():
			return false, nil
		case <-limit.C:
			d.trouble("unmounting "+m.Target(), errors.New("the kernel did not close its objects"))
		}
	}
	err := d.unprotect(m.plan.keys)
	return true, errors.Join(err, m.plan.close(), d.cull(m.plan.keys))
}
