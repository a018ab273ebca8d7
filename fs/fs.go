package fs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"

	"github.com/containerd/log"
	"github.com/containerd/stargz-snapshotter/fs/source"
	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/cache"
	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/format"
	"github.com/lazyerofs/lazyerofs/fs/layer"
	"github.com/lazyerofs/lazyerofs/fs/remote"
)

// Config says what a FS is made of. All fields up to MountFile are needed.
type Config struct {
	// Store keeps the data files.
	Store *cache.Store
	// Resolver and Sources find blobs from labels; Remote says how they are read.
	Resolver *remote.Resolver
	Sources  source.GetSources
	Remote   remote.Options
	// Formats are the formats that are tried, in this order.
	Formats []format.Format
	// Drivers serve lazy layers, in order of preference: a layer that one fails to
	// mount goes to the next. Empty when none works here; NoDriver then says why.
	Drivers  []driver.Driver
	NoDriver error
	// Whole, if set, is tried before Drivers for layers that it is for.
	Whole WholeDriver
	// Adopters are the drivers whose mounts of an earlier process are taken over,
	// also those that may not mount any more; nil means Drivers.
	Adopters []driver.Driver
	// Seal turns fs-verity on for the files of complete layers, where that can be.
	Seal bool
	// MountFile mounts the EROFS image in file read-only at target.
	MountFile func(ctx context.Context, file, target string) error
	// Writer returns the descriptor of a layer's data file that a predecessor of
	// this process left, by the layer's ID, or nil. nil means that there is none.
	Writer func(layerID string) *os.File
	// Slots bounds decoding over all layers; nil bounds it by layer.
	Slots layer.Slots
	// Trace, when set, is told of every batch of every layer.
	Trace func(layer.Event)
}

// WholeDriver mounts some complete layers, in another way than lazy ones.
type WholeDriver interface {
	driver.Driver
	// For reports whether l is such a layer, just now.
	For(l driver.Layer) bool
}

// FS mounts layers. Its methods are safe for concurrent use, but for one target
// only one call may be under way.
type FS struct {
	c     Config
	ctx   context.Context // ends with Close
	stop  context.CancelFunc
	tasks sync.WaitGroup

	records  sync.Mutex          // held while a layer's record is changed
	mounting map[string]struct{} // targets about to be mounted; guarded by records

	mu      sync.Mutex // guards the following; never held while anything waits
	closed  bool
	targets map[string]*target
	layers  map[digest.Digest]*shared
	images  map[digest.Digest]struct{} // manifests whose layers are being opened ahead
}

// target is one mount point that this process serves.
type target struct {
	mount driver.Mount // nil for a local file
	layer *shared
}

// New returns a FS. It mounts and fetches nothing.
func New(ctx context.Context, c Config) *FS {
	if c.Adopters == nil {
		c.Adopters = c.Drivers
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	return &FS{
		c: c, ctx: ctx, stop: stop,
		targets: make(map[string]*target), layers: make(map[digest.Digest]*shared),
		images: make(map[digest.Digest]struct{}), mounting: make(map[string]struct{}),
	}
}

// Mount mounts the lazy layer that labels describe at dir, an existing directory,
// or adopts the mount of it that a predecessor of this process left there. The
// error is a *MountError. When Mount returns nil, all metadata is local and the
// strict parser has accepted it.
func (f *FS) Mount(ctx context.Context, dir string, labels map[string]string) error {
	mounted, err := mountedAt(dir)
	if err != nil {
		return &MountError{Reason: ReasonOther, Err: fmt.Errorf("looking at mount point %s: %w", dir, err)}
	}
	if known := f.target(dir); known != nil && known.layer != nil {
		if mounted {
			return known.layer.verdict()
		}
		// Somebody else unmounted it. What serves it ends with its superblock.
		if err := known.mount.Close(ctx); err != nil {
			return classify(err)
		}
	}
	if !mounted && len(f.c.Drivers) == 0 {
		return &MountError{Reason: ReasonDriver, Err: f.c.NoDriver}
	}
	srcs, err := f.c.Sources(labels)
	if err != nil {
		return &MountError{Reason: ReasonSource, Err: err}
	}
	s, err := f.acquire(ctx, srcs, labels)
	if err != nil {
		return classify(err)
	}
	m, err := f.attach(ctx, dir, s, mounted)
	if err != nil {
		f.release(s)
		return classify(err)
	}
	if err := f.keep(dir, m, s); err != nil {
		return errors.Join(err, m.Release())
	}
	return nil
}

func (f *FS) target(dir string) *target {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.targets[dir]
}

// keep remembers a mount and lets go of the layer once nothing holds it.
func (f *FS) keep(dir string, m driver.Mount, s *shared) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return ErrClosed
	}
	f.targets[dir] = &target{mount: m, layer: s}
	if err := s.verdict(); err != nil {
		log.G(f.ctx).WithError(err).WithField("layer", s.id).WithField("mount", dir).
			Error("a mount of a quarantined layer was taken over: remove the containers over it")
	}
	f.tasks.Go(func() { // ends with the mount or with Close
		select {
		case <-m.Done():
			f.release(s)
		case <-f.ctx.Done():
		}
	})
	return nil
}

// MountFile mounts the complete EROFS image in file, which was made or checked on
// this node, at dir. A live mount there stays.
func (f *FS) MountFile(ctx context.Context, dir, file string) error {
	mounted, err := mountedAt(dir)
	if err != nil {
		return fmt.Errorf("looking at mount point %s: %w", dir, err)
	}
	if !mounted {
		f.seal(ctx, file)
		if err := f.c.MountFile(ctx, file, dir); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.targets[dir] = &target{}
	return nil
}

// Check reports whether new containers may use the mount at dir.
func (f *FS) Check(_ context.Context, dir string) error {
	t := f.target(dir)
	if t == nil {
		return fmt.Errorf("%s: %w", dir, ErrNotMounted)
	}
	if t.layer == nil {
		return nil
	}
	return t.layer.verdict()
}

// Unmount unmounts dir, whoever mounted it. The layer stays open until no
// superblock holds it.
func (f *FS) Unmount(ctx context.Context, dir string) error {
	t := f.target(dir)
	var err error
	if t != nil && t.mount != nil {
		err = t.mount.Close(ctx)
	} else {
		err = unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			err = nil // nothing is mounted there
		}
	}
	if err != nil {
		return fmt.Errorf("unmounting %s: %w", dir, err)
	}
	f.mu.Lock()
	delete(f.targets, dir)
	f.mu.Unlock()
	return nil
}

// Prune lets go of targets that somebody else unmounted, and waits for the end of
// their superblocks as long as ctx allows. A daemon that ends does so, or its
// supervisor would guard for ever what nobody can read.
func (f *FS) Prune(ctx context.Context) error {
	f.mu.Lock()
	all := maps.Clone(f.targets)
	f.mu.Unlock()
	var errs []error
	var gone []driver.Mount
	for dir, t := range all {
		mounted, err := mountedAt(dir)
		if err == nil && !mounted {
			err = f.Unmount(ctx, dir)
			if t.mount != nil {
				gone = append(gone, t.mount)
			}
		}
		errs = append(errs, err)
	}
	for _, m := range gone {
		select {
		case <-m.Done():
		case <-ctx.Done():
		}
	}
	return errors.Join(errs...)
}

// Quarantine keeps new containers away from layers, by the drivers' IDs.
func (f *FS) Quarantine(layerIDs []string, why error) {
	for _, s := range f.named(layerIDs) {
		f.mu.Lock()
		f.condemn(s, why)
		f.mu.Unlock()
		f.suspect(s, why)
	}
}

// named returns the layers with these IDs.
func (f *FS) named(layerIDs []string) []*shared {
	f.mu.Lock()
	defer f.mu.Unlock()
	var found []*shared
	for _, s := range f.layers {
		if slices.Contains(layerIDs, layerID(s.id)) {
			found = append(found, s)
		}
	}
	return found
}

// condemn records why s is not to be used and names its mounts. f.mu is held.
func (f *FS) condemn(s *shared, why error) {
	s.bad.Store(&MountError{Reason: ReasonQuarantine, Err: fmt.Errorf("layer %s is quarantined: %w", s.id, why)})
	var at []string
	for dir, t := range f.targets {
		if t.layer == s {
			at = append(at, dir)
		}
	}
	log.G(f.ctx).WithError(why).WithField("layer", s.id).WithField("mounts", at).
		Error("layer is quarantined: remove the images that use it and the containers over these mounts")
}

// Close stops serving and leaves every mount as it is, for a successor. The
// driver must have been shut down before, and is not used any more.
func (f *FS) Close(ctx context.Context) error {
	f.mu.Lock()
	f.closed = true
	targets, layers := f.targets, f.layers
	f.targets, f.layers = map[string]*target{}, map[digest.Digest]*shared{}
	f.mu.Unlock()
	f.stop()
	f.tasks.Wait()
	var errs []error
	for dir, t := range targets {
		if t.mount == nil {
			continue
		}
		if err := t.mount.Release(); err != nil {
			errs = append(errs, fmt.Errorf("leaving the mount at %s to a successor: %w", dir, err))
		}
	}
	for _, s := range layers {
		s.lock <- struct{}{}
		errs = append(errs, s.close(ctx))
		<-s.lock
	}
	return errors.Join(errs...)
}
