package snapshot

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// prepareLayer answers containerd's question for layer target: a hit commits it
// and returns ErrAlreadyExists, a miss returns where to unpack.
func (s *Snapshotter) prepareLayer(ctx context.Context, key, parent, target string, labels map[string]string) ([]mount.Mount, string, error) {
	unlock, err := s.targets.lock(ctx, target)
	if err != nil {
		return nil, outcomeError, err
	}
	defer unlock()

	miss, err := s.hit(ctx, key, parent, target, labels)
	if err != nil {
		return nil, outcomeError, err
	}
	if miss == nil {
		s.metrics.hits.Inc()
		return nil, outcomeHit, fmt.Errorf("layer %s: %w", target, errdefs.ErrAlreadyExists)
	}
	s.metrics.misses.WithLabelValues(string(miss.Reason)).Inc()
	log.G(ctx).WithField("layer", target).WithField("reason", miss.Reason).Info("layer is left to containerd: " + miss.Err.Error())
	if s.config.Strict {
		return nil, outcomeError, fmt.Errorf("layer %s cannot be loaded lazily and strict is set: %w: %w", target, miss, errdefs.ErrFailedPrecondition)
	}
	labels = maps.Clone(labels)
	labels[LabelMiss] = missLabel(miss)
	mounts, err := s.create(ctx, snapshots.KindActive, key, parent, labels)
	return mounts, outcomeMiss, err
}

// hit tries to make target a committed lazy layer. It returns nil, nil when it is
// one, a *MissError when containerd is to download it, and an error when even
// that cannot go on. The lock of target is held.
func (s *Snapshotter) hit(ctx context.Context, key, parent, target string, labels map[string]string) (*MissError, error) {
	known, below, err := s.lookup(ctx, parent, target)
	if err != nil {
		return nil, err
	}
	if known != nil {
		// Another namespace, or the same one earlier, asked first.
		if err := s.ensure(ctx, []lower{*known}); err != nil {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			return &MissError{Reason: ReasonRestore, Err: err}, nil
		}
		return nil, nil
	}
	if miss := barrier(parent, below, labels); miss != nil {
		return miss, nil
	}
	r, err := s.insert(ctx, snapshots.KindActive, key, parent, labels)
	if err != nil {
		return nil, err
	}
	if err := s.mountLazy(ctx, r, labels); err != nil {
		s.forget(ctx, key, r.id)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return asMiss(err), nil
	}
	err = s.commitLazy(ctx, key, target, labels)
	if err != nil {
		s.unmount(context.WithoutCancel(ctx), r.id)
		s.forget(ctx, key, r.id)
		return nil, err
	}
	return nil, nil
}

// lookup finds target, when it is a layer that may be answered for this parent,
// and the parent.
func (s *Snapshotter) lookup(ctx context.Context, parent, target string) (known *lower, below *snapshots.Info, err error) {
	err = s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		id, info, _, err := storage.GetInfo(ctx, target)
		switch {
		case err == nil && info.Kind == snapshots.KindCommitted && info.Parent == parent && info.Labels[LabelLayer] == LayerLazy:
			l := lowerOf(id, info)
			known = &l
		case err != nil && !errdefs.IsNotFound(err):
			return err
		}
		if parent == "" {
			return nil
		}
		_, info, _, err = storage.GetInfo(ctx, parent)
		if err != nil {
			return fmt.Errorf("parent snapshot %s: %w", parent, err)
		}
		below = &info
		return nil
	})
	return known, below, err
}

// barrier says why a layer may not be a hit whatever its content.
func barrier(parent string, below *snapshots.Info, labels map[string]string) *MissError {
	if parent == "" && labels[labelParentChain] != "" {
		return &MissError{Reason: ReasonRebase, Err: errors.New("containerd unpacks in parallel and names the parent only later, remove the capability rebase from the proxy plugin")}
	}
	if below == nil || below.Labels[LabelLayer] == LayerLazy {
		return nil
	}
	if ours, theirs := labels[labelManifest], below.Labels[labelManifest]; ours != "" && theirs != "" && ours != theirs {
		return nil // unpacked for another image: nothing is being fetched because of it
	}
	return &MissError{Reason: ReasonParent, Err: fmt.Errorf("the layer below, %s, was unpacked, so containerd downloads this one too", below.Name)}
}

// mountLazy mounts the layer of r in bounded time. What succeeds too late is
// unmounted again.
func (s *Snapshotter) mountLazy(ctx context.Context, r record, labels map[string]string) error {
	ctx, cancel := context.WithTimeout(ctx, s.config.PrepareTimeout)
	defer cancel()
	undo := context.WithoutCancel(ctx)
	l := lower{id: r.id, layer: LayerLazy, labels: labels}
	return s.call(ctx, r.id, func(ctx context.Context) error {
		err := s.place(ctx, l)
		if err != nil {
			s.clear(undo, r.id)
		}
		return err
	}, func() { s.clear(undo, r.id) })
}

// commitLazy turns the active snapshot key into the committed layer target.
func (s *Snapshotter) commitLazy(ctx context.Context, key, target string, labels map[string]string) error {
	labels = maps.Clone(labels)
	labels[LabelLayer] = LayerLazy
	return s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		if _, err := storage.CommitActive(ctx, key, target, snapshots.Usage{}, snapshots.WithLabels(labels)); err != nil {
			return fmt.Errorf("committing lazy layer %s: %w", target, err)
		}
		return nil
	})
}

// unmount clears the mount point of id under its lock.
func (s *Snapshotter) unmount(ctx context.Context, id string) {
	unlock, err := s.ids.lock(ctx, id)
	if err != nil {
		return // Cleanup finds it
	}
	defer unlock()
	s.clear(ctx, id)
}

// clear unmounts and removes the mount point of id. The lock of id is held. What
// fails is left to Cleanup.
func (s *Snapshotter) clear(ctx context.Context, id string) {
	target := s.target(id)
	err := s.files.Unmount(ctx, target)
	if err == nil {
		err = os.Remove(target)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		log.G(ctx).WithError(err).WithField("path", target).Warn("cannot clear a mount point")
	}
}
