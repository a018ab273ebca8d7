package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// Prepare creates a writable snapshot over parent, or, when the labels ask for a
// layer by name and it can be loaded lazily, commits that layer and returns
// ErrAlreadyExists.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	start := time.Now()
	labels, err := labelsOf(opts)
	if err != nil {
		return nil, err
	}
	var mounts []mount.Mount
	outcome := outcomeActive
	if target := labels[labelTarget]; target != "" {
		mounts, outcome, err = s.prepareLayer(ctx, key, parent, target, labels)
	} else {
		mounts, err = s.create(ctx, snapshots.KindActive, key, parent, labels)
	}
	if err != nil && outcome != outcomeHit {
		outcome = outcomeError
	}
	s.metrics.observe(outcome, start)
	return mounts, err
}

// View creates a read-only snapshot of parent.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	start := time.Now()
	labels, err := labelsOf(opts)
	if err != nil {
		return nil, err
	}
	mounts, err := s.create(ctx, snapshots.KindView, key, parent, labels)
	outcome := outcomeActive
	if err != nil {
		outcome = outcomeError
	}
	s.metrics.observe(outcome, start)
	return mounts, err
}

func labelsOf(opts []snapshots.Opt) (map[string]string, error) {
	var info snapshots.Info
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return nil, err
		}
	}
	return public(info.Labels), nil
}

// create makes an active or view snapshot and puts the layers below it in place.
func (s *Snapshotter) create(ctx context.Context, kind snapshots.Kind, key, parent string, labels map[string]string) ([]mount.Mount, error) {
	r, err := s.insert(ctx, kind, key, parent, labels)
	if err != nil {
		return nil, err
	}
	if err := s.finish(ctx, r); err != nil {
		s.forget(ctx, key, r.id)
		return nil, err
	}
	return s.mounts(r), nil
}

// finish readies what the mounts of a new snapshot name.
func (s *Snapshotter) finish(ctx context.Context, r record) error {
	if err := s.ensure(ctx, r.lowers); err != nil {
		return err
	}
	if len(r.lowers) == 0 || r.kind != snapshots.KindActive {
		return nil
	}
	// overlayfs shows the upper directory's owner and mode at the root.
	return copyOwner(s.upper(r.id), s.lowerPath(r.lowers[0]))
}

// insert writes a new snapshot into the meta store and makes its directory.
func (s *Snapshotter) insert(ctx context.Context, kind snapshots.Kind, key, parent string, labels map[string]string) (r record, err error) {
	var made string
	err = s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		made, err = s.makeDir(kind, isExtract(key))
		if err != nil {
			return err
		}
		snap, err := storage.CreateSnapshot(ctx, kind, key, parent, snapshots.WithLabels(labels))
		if err != nil {
			return fmt.Errorf("creating snapshot %s: %w", key, err)
		}
		if r, err = load(ctx, key); err != nil {
			return err
		}
		// Cleanup lists directories in a write transaction too, so it never sees
		// this one without its record. One left by a crash or a lost transaction
		// under the same id is nobody's.
		dir := s.dir(snap.ID)
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("clearing the snapshot directory: %w", err)
		}
		if err := os.Rename(made, dir); err != nil {
			return fmt.Errorf("creating the snapshot directory: %w", err)
		}
		made = dir
		return nil
	})
	if err != nil && made != "" {
		if rerr := os.RemoveAll(made); rerr != nil {
			log.G(ctx).WithError(rerr).WithField("path", made).Warn("cannot remove an unused snapshot directory")
		}
	}
	return r, err
}

// makeDir makes a snapshot's directory under a temporary name.
func (s *Snapshotter) makeDir(kind snapshots.Kind, extract bool) (string, error) {
	dir, err := os.MkdirTemp(filepath.Join(s.root, "snapshots"), "new-")
	if err != nil {
		return "", fmt.Errorf("creating the snapshot directory: %w", err)
	}
	err = os.Mkdir(filepath.Join(dir, "fs"), 0o755)
	if err == nil && kind == snapshots.KindActive {
		err = os.Mkdir(filepath.Join(dir, "work"), 0o711)
	}
	if err == nil && extract {
		err = os.WriteFile(filepath.Join(dir, MarkerFile), nil, 0o600)
	}
	if err != nil {
		return dir, fmt.Errorf("creating the snapshot directory: %w", err)
	}
	return dir, nil
}

// isExtract reports whether a snapshot is made to unpack a layer into. containerd
// says so only in the key, which it hands on as "namespace/number/key".
func isExtract(key string) bool {
	return strings.HasPrefix(path.Base(key), snapshots.UnpackKeyPrefix+"-")
}

// forget takes back a snapshot that could not be finished. Cleanup gets the rest
// if the directory cannot be removed now.
func (s *Snapshotter) forget(ctx context.Context, key, id string) {
	ctx = context.WithoutCancel(ctx)
	if err := s.Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) {
		log.G(ctx).WithError(err).WithField("key", key).Warn("cannot take back a snapshot")
		return
	}
	if err := os.RemoveAll(s.dir(id)); err != nil {
		log.G(ctx).WithError(err).WithField("key", key).Warn("cannot remove a snapshot directory")
	}
}

// copyOwner gives dir the owner and the mode of from.
func copyOwner(dir, from string) error {
	st, err := os.Stat(from)
	if err != nil {
		return fmt.Errorf("reading the owner of the layer below: %w", err)
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return errors.New("reading the owner of the layer below: no owner")
	}
	if err := os.Lchown(dir, int(sys.Uid), int(sys.Gid)); err != nil {
		return fmt.Errorf("setting the owner of the upper directory: %w", err)
	}
	// Chown clears set-id bits, so the mode comes second.
	mode := st.Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
	if err := os.Chmod(dir, mode); err != nil {
		return fmt.Errorf("setting the mode of the upper directory: %w", err)
	}
	return nil
}

func blocks(st os.FileInfo) int64 {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Blocks * 512
	}
	return st.Size()
}
