package fs

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/log"
	"github.com/moby/sys/mountinfo"

	"github.com/lazyerofs/lazyerofs/fs/cache"
	"github.com/lazyerofs/lazyerofs/fs/driver"
)

// attach mounts s at dir, or adopts what is mounted there.
func (f *FS) attach(ctx context.Context, dir string, s *shared, mounted bool) (driver.Mount, error) {
	if mounted {
		return f.adopt(ctx, dir, s)
	}
	if err := s.verdict(); err != nil {
		return nil, err
	}
	if err := s.prepare(ctx); err != nil {
		return nil, err
	}
	return f.mount(ctx, dir, s)
}

// mount mounts s with the first driver that can, and records which it was: after a
// restart only that one can take the mount over.
func (f *FS) mount(ctx context.Context, dir string, s *shared) (driver.Mount, error) {
	f.records.Lock()
	f.mounting[dir] = struct{}{}
	f.records.Unlock()
	defer func() {
		f.records.Lock()
		defer f.records.Unlock()
		delete(f.mounting, dir)
	}()
	var errs []error
	if w := f.c.Whole; w != nil && w.For(s.layer) {
		m, err := f.mountWith(ctx, dir, s, w)
		if err == nil {
			return m, nil
		}
		errs = append(errs, err)
	}
	for i, d := range f.c.Drivers {
		if i > 0 { // the first was probed when it was chosen
			if err := d.Probe(f.c.Store.Root()); err != nil {
				errs = append(errs, fmt.Errorf("driver %s: %w", d.Name(), err))
				continue
			}
		}
		m, err := f.mountWith(ctx, dir, s, d)
		if err == nil {
			return m, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, &MountError{Reason: ReasonDriver, Err: errors.Join(errs...)}
}

// mountWith mounts s with d, and says so when that fails.
func (f *FS) mountWith(ctx context.Context, dir string, s *shared, d driver.Driver) (driver.Mount, error) {
	if err := f.recordDriver(s, dir, d.Name()); err != nil {
		return nil, fmt.Errorf("recording the driver of layer %s: %w", s.id, err)
	}
	m, err := d.Mount(ctx, dir, s.layer)
	if err == nil {
		return m, nil
	}
	if ctx.Err() == nil {
		log.G(ctx).WithError(err).WithField("layer", s.id).WithField("driver", d.Name()).
			Warn("a driver failed to mount a layer, trying the next one")
	}
	return nil, fmt.Errorf("mounting layer %s with driver %s: %w", s.id, d.Name(), err)
}

// recordDriver records that the driver with this name mounts s at dir, and forgets
// mounts that are gone. One layer may be mounted by several drivers: the
// configuration may change while its mounts stay.
func (f *FS) recordDriver(s *shared, dir, name string) error {
	all, err := mountinfo.GetMounts(nil)
	if err != nil {
		return err
	}
	there := make(map[string]bool, len(all))
	for _, m := range all {
		there[m.Mountpoint] = true
	}
	return f.amend(s, func(r *cache.Record) {
		mounts := map[string]string{dir: name} // a new one: amend compares with the old
		for at, of := range r.Mounts {
			_, soon := f.mounting[at]
			if at != dir && (soon || there[at]) {
				mounts[at] = of
			}
		}
		r.Mounts = mounts
	})
}

// mountedAt reports whether something is mounted at dir, a path without symbolic
// links. It looks at the kernel's list and never at dir itself: a FUSE mount that
// waits to be taken over would have us wait for ourselves.
func mountedAt(dir string) (bool, error) {
	there, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(dir))
	return len(there) > 0, err
}

// adopt takes over the mount at dir with the driver that made it.
func (f *FS) adopt(ctx context.Context, dir string, s *shared) (driver.Mount, error) {
	path, err := f.c.Store.Dir(s.id)
	if err != nil {
		return nil, err
	}
	rec, err := cache.LoadRecord(path)
	if err != nil {
		return nil, fmt.Errorf("taking over the mount at %s: %w", dir, err)
	}
	name, known := rec.Mounts[dir]
	if !known {
		name = rec.Driver
	}
	for _, d := range f.c.Adopters {
		// Records from before there was a choice name no driver.
		if name != "" && name != d.Name() {
			continue
		}
		m, err := d.Adopt(ctx, dir, s.layer)
		if err != nil {
			return nil, fmt.Errorf("taking over the mount at %s with driver %s: %w", dir, d.Name(), err)
		}
		return m, nil
	}
	return nil, fail(ReasonDriver, "the mount at %s was made by driver %q, which this process does not have", dir, name)
}
