package snapshot

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// Commit turns an active snapshot into a layer: the image that the differ wrote
// if there is one, else the upper directory. It mounts nothing.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	var base snapshots.Info
	for _, opt := range opts {
		if err := opt(&base); err != nil {
			return err
		}
	}
	id, err := s.idOf(ctx, key)
	if err != nil {
		return err
	}
	usage, err := s.diskUsage(ctx, id)
	if err != nil {
		return err
	}
	layer := ""
	if _, err := os.Lstat(s.layerFile(id)); err == nil {
		layer = LayerFile
	} else if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("looking for an unpacked layer: %w", err)
	}
	return s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		_, info, _, err := storage.GetInfo(ctx, key)
		if err != nil {
			return err
		}
		// The meta store replaces labels at commit; ours stay.
		labels := public(base.Labels)
		maps.Copy(labels, private(info.Labels))
		if layer != "" {
			labels[LabelLayer] = layer
		}
		_, err = storage.CommitActive(ctx, key, name, usage, snapshots.WithLabels(labels), snapshots.WithParent(base.Parent))
		if err != nil {
			return fmt.Errorf("committing snapshot %s: %w", key, err)
		}
		return nil
	})
}

func (s *Snapshotter) idOf(ctx context.Context, key string) (id string, err error) {
	err = s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		id, _, _, err = storage.GetInfo(ctx, key)
		return err
	})
	return id, err
}

// Cleanup unmounts and deletes what removed snapshots left. What cannot be
// removed now is logged and tried again next time.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	targets, dirs, err := s.leftovers(ctx)
	if err != nil {
		return fmt.Errorf("looking for removed snapshots: %w", err)
	}
	for _, id := range targets {
		s.unmount(ctx, id)
	}
	for _, name := range dirs {
		// A layer that is still mounted from its directory keeps it.
		if _, err := os.Lstat(s.target(name)); err == nil {
			continue
		}
		if err := os.RemoveAll(s.dir(name)); err != nil {
			log.G(ctx).WithError(err).WithField("path", s.dir(name)).Warn("cannot remove a snapshot directory")
		}
	}
	return ctx.Err()
}

// leftovers lists the mount points and directories that belong to no snapshot. A
// write transaction keeps others from making new ones meanwhile.
func (s *Snapshotter) leftovers(ctx context.Context) (targets, dirs []string, err error) {
	err = s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		ids, err := storage.IDMap(ctx)
		if err != nil && !errdefs.IsNotFound(err) { // nothing was ever stored
			return err
		}
		if targets, err = unknown(filepath.Join(s.root, "l"), ids); err != nil {
			return err
		}
		dirs, err = unknown(filepath.Join(s.root, "snapshots"), ids)
		return err
	})
	return targets, dirs, err
}

func unknown(dir string, ids map[string]string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if _, ok := ids[e.Name()]; !ok {
			out = append(out, e.Name())
		}
	}
	return out, nil
}
