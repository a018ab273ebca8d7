package plugin

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/lazyerofs/lazyerofs/cmd/internal/config"
	"github.com/lazyerofs/lazyerofs/cmd/internal/wire"
	"github.com/lazyerofs/lazyerofs/fs/fdstore"
	"github.com/lazyerofs/lazyerofs/snapshot"
)

// ID is the name of both plugins.
const ID = "lazyerofs"

// exportAnnotations makes containerd tell a layer which image it belongs to.
const exportAnnotations = "enable_remote_snapshot_annotations"

// taken is what a predecessor left. It is taken once, before main.
var taken struct {
	keeper *fdstore.Store
	left   wire.Inheritance
	err    error
}

func init() {
	taken.keeper, taken.left, taken.err = wire.Inherit()
	conf := config.DefaultNode()
	registry.Register(&plugin.Registration{
		Type: plugins.SnapshotPlugin, ID: ID, Config: &conf,
		InitFn: func(ic *plugin.InitContext) (any, error) { return start(ic) },
	})
	unpack := config.DefaultUnpack()
	registry.Register(&plugin.Registration{
		Type: plugins.DiffPlugin, ID: ID, Config: &unpack,
		Requires: []plugin.Type{plugins.MetadataPlugin, plugins.SnapshotPlugin},
		InitFn:   func(ic *plugin.InitContext) (any, error) { return startDiffer(ic) },
	})
}

// skip makes err one that does not take containerd down. An error of any other kind
// would fail the metadata plugin, and everything with it.
func skip(ctx context.Context, err error) error {
	log.G(ctx).WithError(err).Error("lazyerofs is not there")
	return fmt.Errorf("%w: %w", err, plugin.ErrSkipPlugin)
}

// ourPlatforms are this machine's, with and without the feature that images of
// containerd's own converter ask for.
func ourPlatforms() []ocispec.Platform {
	plain := platforms.DefaultSpec()
	erofs := plain
	erofs.OSFeatures = []string{"erofs"}
	return []ocispec.Platform{plain, erofs}
}

// snapshotter is the snapshotter with what is behind it.
type snapshotter struct {
	*snapshot.Snapshotter
	node    *wire.Node
	metrics *prometheus.Registry
	ctx     context.Context // with containerd's logger; it does not end
	stop    context.CancelFunc
	restore sync.WaitGroup
}

var (
	_ snapshots.Snapshotter = (*snapshotter)(nil)
	_ snapshots.Cleaner     = (*snapshotter)(nil)
)

// start makes the snapshotter and everything behind it.
func start(ic *plugin.InitContext) (*snapshotter, error) {
	c, ok := ic.Config.(*config.Node)
	if !ok {
		return nil, skip(ic.Context, fmt.Errorf("the configuration is a %T", ic.Config))
	}
	conf := *c
	if conf.Root == "" {
		conf.Root = ic.Properties[plugins.PropertyRootDir]
	}
	if err := errors.Join(taken.err, conf.Check()); err != nil {
		return nil, skip(ic.Context, err)
	}
	s := &snapshotter{metrics: prometheus.NewRegistry(), ctx: context.WithoutCancel(ic.Context)}
	var err error
	s.node, err = wire.New(s.ctx, conf, wire.Options{
		Keeper: taken.keeper, Inherited: taken.left, Metrics: s.metrics, InProcess: true,
	})
	if err != nil {
		return nil, skip(ic.Context, err)
	}
	s.Snapshotter = s.node.Snapshots
	if err := prometheus.Register(s.metrics); err != nil {
		return nil, skip(ic.Context, errors.Join(fmt.Errorf("registering metrics: %w", err), s.node.End(s.ctx)))
	}
	restoring, stop := context.WithCancel(s.ctx)
	s.stop = stop
	s.restore.Go(func() { s.node.Restore(restoring) }) // ends with Close
	ic.Meta.Platforms = append(ic.Meta.Platforms, ourPlatforms()...)
	// No capability: "rebase" would leave nothing to load lazily.
	ic.Meta.Exports[plugins.SnapshotterRootDir] = conf.Root
	ic.Meta.Exports[exportAnnotations] = "true"
	return s, nil
}

// Close finishes reads that were taken, and leaves mounts and later reads to the
// next containerd.
func (s *snapshotter) Close() error {
	s.stop()
	s.restore.Wait()
	prometheus.Unregister(s.metrics)
	return s.node.End(s.ctx)
}
