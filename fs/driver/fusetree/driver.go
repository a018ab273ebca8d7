package fusetree

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/fusesession"
	"github.com/lazyerofs/lazyerofs/fs/driver/lifetime"
	"github.com/lazyerofs/lazyerofs/fs/driver/mountproc"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
	"github.com/lazyerofs/lazyerofs/fs/kernel"
)

// Driver shows the parsed metadata of layers through FUSE. It is safe for
// concurrent use.
type Driver struct {
	conf     Config
	ctx      context.Context // of the connections; carries the logger
	stats    *counters
	watchers *lifetime.Watchers // of the mounts

	mu      sync.Mutex
	down    bool
	orphans map[string]string // inherited connections that were not adopted, with their layers
	mounts  map[*mount]struct{}
}

// New returns the driver. It serves what conf.Inherited holds once it is adopted.
func New(ctx context.Context, conf Config) (*Driver, error) {
	if conf.Keeper == nil {
		return nil, errors.New("the fusetree driver needs a keeper of descriptors")
	}
	return &Driver{
		conf: conf, stats: newCounters(), ctx: context.WithoutCancel(ctx), watchers: lifetime.NewWatchers(),
		orphans: sessionsIn(conf.Inherited), mounts: map[*mount]struct{}{},
	}, nil
}

// Name returns "fusetree".
func (d *Driver) Name() string { return Name }

// Probe mounts an empty tree as Mount does, and has a child look at it. The mount is
// attached nowhere, so that nothing stays should this process be killed; fusermount3
// needs a directory.
func (d *Driver) Probe(string) error {
	t, err := erofs.NewBuilder().Tree()
	if err != nil {
		return fmt.Errorf("probing FUSE: %w", err)
	}
	fs, err := writtenTree(t, erofs.WriteOptions{}, []driver.Layer{nil}, newCounters())
	if err != nil {
		return fmt.Errorf("probing FUSE: %w", err)
	}
	defer fs.close()
	conf := d.session("probe", forgetful{}, fs)
	if !d.mountConfig("").Helper {
		if err = d.probeDetached(conf); !errors.Is(err, unix.EPERM) {
			return err
		}
	}
	return d.probeAttached(conf)
}

func (d *Driver) probeDetached(conf fusesession.Config) error {
	s, err := fusesession.Mount(d.ctx, d.mountConfig(""), conf)
	if err != nil {
		return errors.Join(fmt.Errorf("mounting through FUSE: %w", err), kernel.ErrNotSupported)
	}
	root, err := s.Root()
	if err == nil {
		err = errors.Join(mountproc.Meet(d.ctx, root, s.Abort), root.Close())
	}
	err = errors.Join(err, s.Detach())
	<-s.Done()
	return err
}

func (d *Driver) probeAttached(conf fusesession.Config) (err error) {
	dir, err := driver.ProbeTarget()
	if err != nil {
		return fmt.Errorf("probing FUSE: %w", err)
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	s, err := fusesession.Mount(d.ctx, d.mountConfig(dir), conf)
	if err != nil {
		return errors.Join(fmt.Errorf("mounting through FUSE: %w", err), kernel.ErrNotSupported)
	}
	if err := s.Unmount(); err != nil {
		return err
	}
	<-s.Done()
	return nil
}

// forgetful is the keeper of a probe: should this process die, nothing stays.
type forgetful struct{}

// Put keeps nothing.
func (forgetful) Put(string, *os.File) error { return nil }

// Remove has nothing to drop.
func (forgetful) Remove(string) error { return nil }

// Mount shows a layer whose metadata is resident. A complete layer is mounted by
// the kernel's EROFS where it can, and then needs this process no more.
func (d *Driver) Mount(ctx context.Context, target string, l driver.Layer) (driver.Mount, error) {
	if lifetime.Closed(l.Complete()) {
		if m, err := d.mountKernel(ctx, target, l); err == nil {
			return m, nil
		}
	}
	fs, err := d.layerTree(l)
	if err != nil {
		return nil, fmt.Errorf("mounting layer %s at %s: %w", l.ID(), target, err)
	}
	m, err := d.mount(ctx, target, l.ID(), fs)
	if err != nil {
		return nil, fmt.Errorf("mounting layer %s at %s: %w", l.ID(), target, err)
	}
	return m, nil
}

// MountImage shows what overlayfs would show of layers, bottom first, in one
// mount that takes no more privilege than fusermount3. The metadata of all of
// them is resident.
func (d *Driver) MountImage(ctx context.Context, target string, layers []driver.Layer) (driver.Mount, error) {
	fs, err := d.imageTree(layers)
	if err != nil {
		return nil, fmt.Errorf("mounting %d layers at %s: %w", len(layers), target, err)
	}
	m, err := d.mount(ctx, target, imageID, fs)
	if err != nil {
		return nil, fmt.Errorf("mounting %d layers at %s: %w", len(layers), target, err)
	}
	return m, nil
}

func (d *Driver) mount(ctx context.Context, target, id string, fs *tree) (*mount, error) {
	m, err := d.newMount(target)
	if err != nil {
		fs.close()
		return nil, err
	}
	m.fs = fs
	m.session, err = fusesession.Mount(ctx, d.mountConfig(target), d.session(fusesession.NewName(sessionName(target, id)), d.conf.Keeper, fs))
	if err == nil {
		if err = d.readAhead(target); err != nil {
			err = errors.Join(err, m.session.Unmount())
		}
	}
	if err != nil {
		d.forget(m)
		return nil, err
	}
	return m, d.watch(m)
}

// Adopt takes over a predecessor's mount of a layer, which nobody notices.
func (d *Driver) Adopt(_ context.Context, target string, l driver.Layer) (driver.Mount, error) {
	kind, err := typeAt(target)
	if err == nil && kind == "erofs" {
		return d.adoptKernel(target)
	}
	fs, terr := d.layerTree(l)
	if err = errors.Join(err, terr); err != nil {
		return nil, fmt.Errorf("adopting layer %s at %s: %w", l.ID(), target, err)
	}
	m, err := d.adopt(target, l.ID(), fs)
	if err != nil {
		return nil, fmt.Errorf("adopting layer %s at %s: %w", l.ID(), target, err)
	}
	return m, nil
}

// AdoptImage is Adopt for a mount of MountImage, with the same layers.
func (d *Driver) AdoptImage(_ context.Context, target string, layers []driver.Layer) (driver.Mount, error) {
	fs, err := d.imageTree(layers)
	if err != nil {
		return nil, fmt.Errorf("adopting %d layers at %s: %w", len(layers), target, err)
	}
	m, err := d.adopt(target, imageID, fs)
	if err != nil {
		return nil, fmt.Errorf("adopting %d layers at %s: %w", len(layers), target, err)
	}
	return m, nil
}

func (d *Driver) adopt(target, id string, fs *tree) (*mount, error) {
	m, err := d.newMount(target)
	if err != nil {
		fs.close()
		return nil, err
	}
	m.fs = fs
	d.mu.Lock()
	name := fusesession.Newest(sessionName(target, id), slices.Collect(maps.Keys(d.orphans)))
	delete(d.orphans, name)
	d.mu.Unlock()
	if name == "" {
		d.forget(m)
		return nil, ErrNotInherited
	}
	m.session, err = fusesession.Adopt(d.ctx, target, d.session(name, d.conf.Keeper, fs), d.conf.Inherited)
	if err != nil {
		d.forget(m)
		return nil, err
	}
	return m, d.watch(m)
}

// Settle ends the connections that nobody adopted: their readers get ENOTCONN.
// It returns the IDs of their layers; those of an image have none.
func (d *Driver) Settle() ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.down {
		return nil, ErrShutdown
	}
	var ids []string
	var errs []error
	for name, id := range d.orphans {
		errs = append(errs, fusesession.Discard(fusesession.Config{Name: name, Keeper: d.conf.Keeper}, d.conf.Inherited))
		if id != "" && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	clear(d.orphans)
	return ids, errors.Join(errs...)
}

// Shutdown leaves every mount to a successor. Reads in progress end before; when
// ctx ends first they fail.
func (d *Driver) Shutdown(ctx context.Context) error {
	d.mu.Lock()
	if d.down {
		d.mu.Unlock()
		return ErrShutdown
	}
	d.down = true
	d.watchers.Stop()
	var served []*mount
	for m := range d.mounts {
		served = append(served, m)
	}
	d.mu.Unlock()
	var wait sync.WaitGroup
	errs := make([]error, len(served))
	for k, m := range served {
		wait.Go(func() { errs[k] = m.stop(ctx) })
	}
	wait.Wait()
	d.watchers.Wait()
	return errors.Join(errs...)
}

// Stats counts over all mounts.
func (d *Driver) Stats() driver.Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := driver.Stats{Hits: d.stats.hits.Load(), Misses: d.stats.misses.Load(), Denied: d.stats.denied.Load()}
	for m := range d.mounts {
		if !d.down && m.session != nil {
			s.Served++
		}
	}
	return s
}
