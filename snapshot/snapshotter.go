package snapshot

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"github.com/prometheus/client_golang/prometheus"
)

// Config is what a Snapshotter can be told. The zero value is the default.
type Config struct {
	// PrepareTimeout bounds the mounting of layers in one call: after it a layer
	// is a miss, and a container whose layers do not come back gets an error.
	// 0 means 20 seconds.
	PrepareTimeout time.Duration
	// Strict makes a layer that cannot be loaded lazily an error of the pull.
	Strict bool
	// Metrics is where metrics are registered; nil keeps them to ourselves.
	Metrics prometheus.Registerer
}

// DefaultPrepareTimeout is the limit of a Prepare when Config gives none.
const DefaultPrepareTimeout = 20 * time.Second

// grace is how much longer a Filesystem may take to return once its context is
// done, before the call is given up and undone when it comes back.
const grace = 500 * time.Millisecond

// closeTimeout bounds how long Close waits for calls that were given up.
const closeTimeout = 10 * time.Second

// Snapshotter implements snapshots.Snapshotter and snapshots.Cleaner. All methods
// are safe for concurrent use.
type Snapshotter struct {
	root    string
	files   Filesystem
	config  Config
	ms      *storage.MetaStore
	overlay []string // options that this kernel needs
	metrics *metrics

	targets keylock // by committed name
	ids     keylock // by snapshot id; held while its mount point changes

	mu     sync.Mutex
	closed bool
	calls  sync.WaitGroup // calls into files that are under way
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
)

// New opens or creates the snapshotter at root. It touches no mount: layers come
// back on first use, or with Restore.
func New(root string, files Filesystem, config Config) (*Snapshotter, error) {
	if config.PrepareTimeout == 0 {
		config.PrepareTimeout = DefaultPrepareTimeout
	}
	for _, dir := range []string{root, filepath.Join(root, "snapshots"), filepath.Join(root, "l")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("creating the snapshot directory: %w", err)
		}
	}
	// Mount options carry the root, and a relative one would mean another place
	// in the process that mounts. The kernel's list of mounts knows no symbolic links.
	root, err := filepath.Abs(root)
	if err == nil {
		root, err = filepath.EvalSymlinks(root)
	}
	if err != nil {
		return nil, fmt.Errorf("finding the snapshot directory: %w", err)
	}
	ok, err := fs.SupportsDType(root)
	if err != nil {
		return nil, fmt.Errorf("asking whether %s reports file types: %w", root, err)
	}
	if !ok {
		return nil, fmt.Errorf("%s does not report file types in directories, which overlayfs needs: format xfs with ftype=1", root)
	}
	ms, err := storage.NewMetaStore(filepath.Join(root, "metadata.db"))
	if err != nil {
		return nil, fmt.Errorf("opening the snapshot metadata: %w", err)
	}
	s := &Snapshotter{
		root: root, files: files, config: config, ms: ms,
		overlay: overlayOptions(root), metrics: newMetrics(),
	}
	if config.Metrics != nil {
		if err := s.metrics.register(config.Metrics); err != nil {
			return nil, errors.Join(fmt.Errorf("registering snapshot metrics: %w", err), ms.Close())
		}
	}
	return s, nil
}

// Close releases the metadata. Mounts stay as they are. It waits for calls into
// the Filesystem that a Prepare gave up, up to ten seconds.
func (s *Snapshotter) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	idle := make(chan struct{})
	go func() { // ends with the calls it waits for
		s.calls.Wait()
		close(idle)
	}()
	select {
	case <-idle:
	case <-time.After(closeTimeout):
		return errors.Join(errors.New("a layer is still being mounted"), s.ms.Close())
	}
	return s.ms.Close()
}

// Stat returns what is known of a snapshot by its key or name.
func (s *Snapshotter) Stat(ctx context.Context, key string) (info snapshots.Info, err error) {
	err = s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		_, info, _, err = storage.GetInfo(ctx, key)
		return err
	})
	return info, err
}

// Update changes labels. Those that say how a layer is mounted stay as they are.
func (s *Snapshotter) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (out snapshots.Info, err error) {
	err = s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		_, have, _, err := storage.GetInfo(ctx, info.Name)
		if err != nil {
			return err
		}
		if out, err = storage.UpdateInfo(ctx, info, fieldpaths...); err != nil {
			return err
		}
		labels := thaw(out.Labels, have.Labels)
		if maps.Equal(labels, out.Labels) {
			return nil
		}
		out.Labels = labels
		out, err = storage.UpdateInfo(ctx, out, "labels")
		return err
	})
	return out, err
}

// Usage returns the disk space that a snapshot takes for itself alone. For an
// active snapshot that is its upper directory now. For a committed one it is a
// figure fixed at commit: an unpacked layer's blocks, and 0 for a lazy layer,
// whose data lies in the shared cache and is counted there, once for all
// snapshots that use it.
func (s *Snapshotter) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	var (
		id    string
		info  snapshots.Info
		usage snapshots.Usage
	)
	if err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		id, info, usage, err = storage.GetInfo(ctx, key)
		return err
	}); err != nil {
		return snapshots.Usage{}, err
	}
	if info.Kind != snapshots.KindActive {
		return usage, nil
	}
	return s.diskUsage(ctx, id)
}

// diskUsage is what snapshot id takes on disk: the image if there is one, else
// the upper directory.
func (s *Snapshotter) diskUsage(ctx context.Context, id string) (snapshots.Usage, error) {
	if st, err := os.Stat(s.layerFile(id)); err == nil {
		return snapshots.Usage{Inodes: 1, Size: blocks(st)}, nil
	}
	du, err := fs.DiskUsage(ctx, s.upper(id))
	if err != nil {
		return snapshots.Usage{}, fmt.Errorf("measuring snapshot %s: %w", id, err)
	}
	return snapshots.Usage(du), nil
}

// Walk calls fn for each snapshot that matches the filters; of a store that never had
// one that is none.
func (s *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	called := false
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		return storage.WalkInfo(ctx, func(ctx context.Context, i snapshots.Info) error {
			called = true
			return fn(ctx, i)
		}, filters...)
	})
	if !called && errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// Remove forgets a snapshot. Its directory and its mount go with the next
// Cleanup, so that containerd's collector never waits for a disk or a kernel.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	return s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		if _, _, err := storage.Remove(ctx, key); err != nil {
			return fmt.Errorf("removing snapshot %s: %w", key, err)
		}
		return nil
	})
}

func (s *Snapshotter) dir(id string) string       { return filepath.Join(s.root, "snapshots", id) }
func (s *Snapshotter) upper(id string) string     { return filepath.Join(s.dir(id), "fs") }
func (s *Snapshotter) work(id string) string      { return filepath.Join(s.dir(id), "work") }
func (s *Snapshotter) layerFile(id string) string { return filepath.Join(s.dir(id), LayerFileName) }
func (s *Snapshotter) target(id string) string    { return filepath.Join(s.root, "l", id) }
