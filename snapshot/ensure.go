package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sync/errgroup"
)

// parallelMounts bounds how many layers of one image are mounted at once.
const parallelMounts = 8

// ensure puts every layer in place that is not, within PrepareTimeout.
func (s *Snapshotter) ensure(ctx context.Context, lowers []lower) error {
	ctx, cancel := context.WithTimeout(ctx, s.config.PrepareTimeout)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelMounts)
	for _, l := range lowers {
		if l.layer == LayerDir {
			continue
		}
		g.Go(func() error {
			if err := s.ensureOne(ctx, l); err != nil {
				return fmt.Errorf("layer %s cannot be mounted again: %w", l.name, err)
			}
			return nil
		})
	}
	err := g.Wait()
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: %w", errdefs.ErrUnavailable, err)
	}
	return err
}

func (s *Snapshotter) ensureOne(ctx context.Context, l lower) error {
	target := s.target(l.id)
	return s.call(ctx, l.id, func(ctx context.Context) error {
		if there(target) && s.files.Check(ctx, target) == nil {
			return nil
		}
		err := s.place(ctx, l)
		s.metrics.restored(err)
		return err
	}, nil)
}

// there reports whether something is mounted at target; what cannot be told is
// not. It never looks at target itself: a mount that waits to be taken over may
// have us wait for ourselves.
func there(target string) bool {
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(target))
	return err == nil && len(mounts) > 0
}

// place mounts l, or has its live mount adopted. The lock of l.id is held.
func (s *Snapshotter) place(ctx context.Context, l lower) error {
	target := s.target(l.id)
	if err := os.Mkdir(target, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("creating the mount point: %w", err)
	}
	if l.layer == LayerFile {
		return s.files.MountFile(ctx, target, s.layerFile(l.id))
	}
	return s.files.Mount(ctx, target, l.labels)
}

// errClosed is the answer of a Snapshotter that was closed.
var errClosed = fmt.Errorf("the snapshotter is closed: %w", errdefs.ErrUnavailable)

// call runs fn under the lock of snapshot id and waits for it until ctx is done
// and a little longer. A call that is given up keeps the lock until it returns;
// when it then turns out to have succeeded, undo runs.
func (s *Snapshotter) call(ctx context.Context, id string, fn func(context.Context) error, undo func()) error {
	unlock, err := s.ids.lock(ctx, id)
	if err != nil {
		return err
	}
	if !s.begin() {
		unlock()
		return errClosed
	}
	const finished, abandoned = 1, 2
	var state atomic.Int32
	done := make(chan error, 1)
	go func() { // owned by Close, which waits for it
		defer s.calls.Done()
		defer unlock()
		err := fn(ctx)
		if !state.CompareAndSwap(0, finished) && err == nil && undo != nil {
			undo()
		}
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	late := time.NewTimer(grace)
	defer late.Stop()
	select {
	case err := <-done:
		return err
	case <-late.C:
	}
	if state.CompareAndSwap(0, abandoned) {
		return context.Cause(ctx)
	}
	return <-done
}

// begin counts a call, unless the Snapshotter is closed.
func (s *Snapshotter) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.calls.Add(1)
	return true
}

// Restore adopts every layer that is mounted now, from local state. A daemon
// calls it at start: containers that ran through its absence may be waiting for
// data. One bad layer is logged and spoils nothing.
func (s *Snapshotter) Restore(ctx context.Context) error {
	var live []lower
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		return storage.WalkInfo(ctx, func(ctx context.Context, info snapshots.Info) error {
			if info.Kind != snapshots.KindCommitted || info.Labels[LabelLayer] != LayerLazy {
				return nil
			}
			id, _, _, err := storage.GetInfo(ctx, info.Name)
			if err != nil {
				return err
			}
			if there(s.target(id)) { // what is not comes back on first use
				live = append(live, lowerOf(id, info))
			}
			return nil
		})
	})
	if errdefs.IsNotFound(err) {
		return nil // nothing was ever stored
	}
	if err != nil {
		return fmt.Errorf("listing snapshots to restore: %w", err)
	}
	var g errgroup.Group
	g.SetLimit(parallelMounts)
	for _, l := range live {
		g.Go(func() error {
			if err := s.ensureOne(ctx, l); err != nil {
				log.G(ctx).WithError(err).WithField("layer", l.name).Error("a mounted layer cannot be served")
			}
			return nil
		})
	}
	return g.Wait()
}
