package snapshot

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"github.com/containerd/log"
)

// record is one snapshot as the meta store has it, with the layers below it from
// the nearest down.
type record struct {
	id     string
	kind   snapshots.Kind
	lowers []lower
}

// lower is a committed snapshot in its role as a layer of others.
type lower struct {
	id, name string
	layer    string // LayerLazy, LayerFile or LayerDir
	labels   map[string]string
}

// overlayOptions asks the kernel which options overlayfs needs here.
func overlayOptions(root string) []string {
	var opts []string
	// index=on would refuse an upper directory whose lower ones were mounted anew.
	if _, err := os.Stat("/sys/module/overlay/parameters/index"); err == nil {
		opts = append(opts, "index=off")
	}
	user, err := overlayutils.NeedsUserXAttr(root)
	if err != nil {
		log.L.WithError(err).Warn("cannot tell whether overlayfs needs userxattr here, assuming it does not")
	}
	if user {
		opts = append(opts, "userxattr")
	}
	return opts
}

// load reads snapshot key with the chain below it. It runs in a transaction.
func load(ctx context.Context, key string) (record, error) {
	id, info, _, err := storage.GetInfo(ctx, key)
	if err != nil {
		return record{}, err
	}
	r := record{id: id, kind: info.Kind}
	for name := info.Parent; name != ""; {
		id, info, _, err := storage.GetInfo(ctx, name)
		if err != nil {
			return record{}, fmt.Errorf("reading parent %s: %w", name, err)
		}
		r.lowers = append(r.lowers, lowerOf(id, info))
		name = info.Parent
	}
	return r, nil
}

func lowerOf(id string, info snapshots.Info) lower {
	l := lower{id: id, name: info.Name, layer: info.Labels[LabelLayer], labels: info.Labels}
	if l.layer == "" {
		l.layer = LayerDir
	}
	return l
}

// lowerPath is where the files of l are; the same for as long as l exists.
func (s *Snapshotter) lowerPath(l lower) string {
	if l.layer == LayerDir {
		return s.upper(l.id)
	}
	return s.target(l.id)
}

// mounts are the mounts of r: a pure function of what the meta store holds.
func (s *Snapshotter) mounts(r record) []mount.Mount {
	switch {
	case r.kind == snapshots.KindActive && len(r.lowers) == 0:
		return bind(s.upper(r.id), "rw")
	case len(r.lowers) == 0:
		return bind(s.upper(r.id), "ro")
	case r.kind != snapshots.KindActive && len(r.lowers) == 1:
		// overlayfs refuses one lower directory without an upper one.
		return bind(s.lowerPath(r.lowers[0]), "ro")
	}
	var opts []string
	if r.kind == snapshots.KindActive {
		opts = append(opts, "workdir="+s.work(r.id), "upperdir="+s.upper(r.id))
	} else {
		opts = append(opts, "ro")
	}
	paths := make([]string, len(r.lowers))
	for i, l := range r.lowers {
		paths[i] = s.lowerPath(l)
	}
	opts = append(opts, "lowerdir="+strings.Join(paths, ":"))
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: append(opts, s.overlay...)}}
}

func bind(dir, mode string) []mount.Mount {
	return []mount.Mount{{Type: "bind", Source: dir, Options: []string{mode, "rbind"}}}
}

// Mounts returns the mounts of an active or view snapshot, with every layer below
// it in place, also after a restart of this process or of the machine.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	var r record
	if err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		// GetSnapshot refuses committed snapshots, which have no mounts of their own.
		if _, err := storage.GetSnapshot(ctx, key); err != nil {
			return fmt.Errorf("mounts of snapshot %s: %w", key, err)
		}
		r, err = load(ctx, key)
		return err
	}); err != nil {
		return nil, err
	}
	if err := s.ensure(ctx, r.lowers); err != nil {
		return nil, err
	}
	return s.mounts(r), nil
}
