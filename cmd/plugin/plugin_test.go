package plugin

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	"github.com/containerd/typeurl/v2"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"
	"go.uber.org/goleak"

	"github.com/lazyerofs/lazyerofs/cmd/internal/config"
	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// set makes plugins as containerd does: in order, each in the set of those before.
type set struct {
	t    *testing.T
	dir  string
	done *plugin.Set
}

func newSet(t *testing.T) *set {
	testenv.RequireRoot(t)
	return &set{t: t, dir: t.TempDir(), done: plugin.NewPluginSet()}
}

func (s *set) init(r plugin.Registration) *plugin.Plugin {
	s.t.Helper()
	ic := plugin.NewContext(s.t.Context(), s.done, map[string]string{plugins.PropertyRootDir: filepath.Join(s.dir, r.URI())})
	ic.Config = r.Config
	p := r.Init(ic)
	require.NoError(s.t, s.done.Add(p))
	return p
}

// registered is one of our plugins as containerd finds it.
func registered(t *testing.T, kind plugin.Type) plugin.Registration {
	t.Helper()
	for _, r := range registry.Graph(func(*plugin.Registration) bool { return false }) {
		if r.Type == kind && r.ID == ID {
			return r
		}
	}
	t.Fatalf("no %s is registered", kind)
	return plugin.Registration{}
}

// metadata makes containerd's own store over a snapshotter.
func (s *set) metadata(sn snapshots.Snapshotter) {
	s.t.Helper()
	store, err := local.NewStore(filepath.Join(s.dir, "content"))
	require.NoError(s.t, err)
	bolt, err := bbolt.Open(filepath.Join(s.dir, "meta.db"), 0o600, nil)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { require.NoError(s.t, bolt.Close()) })
	db := metadata.NewDB(bolt, store, map[string]snapshots.Snapshotter{ID: sn})
	require.NoError(s.t, db.Init(s.t.Context()))
	s.init(plugin.Registration{Type: plugins.MetadataPlugin, ID: "bolt", InitFn: func(*plugin.InitContext) (any, error) { return db, nil }})
}

func TestPluginsStartAndEnd(t *testing.T) {
	for range 2 { // what was registered at the first start is gone at the second
		s := newSet(t)
		r := registered(t, plugins.SnapshotPlugin)
		p := s.init(r)
		got, err := p.Instance()
		require.NoError(t, err)
		require.Equal(t, map[string]string{
			"root": filepath.Join(s.dir, r.URI()), "enable_remote_snapshot_annotations": "true",
		}, p.Meta.Exports)
		require.Empty(t, p.Meta.Capabilities, "rebase leaves nothing to load lazily")
		require.Len(t, p.Meta.Platforms, 2)
		require.Equal(t, []string{"erofs"}, p.Meta.Platforms[1].OSFeatures)

		sn, ok := got.(snapshots.Snapshotter)
		require.True(t, ok)
		require.Implements(t, (*snapshots.Cleaner)(nil), got, "containerd would never clean up")
		require.Implements(t, (*io.Closer)(nil), got, "containerd would not end it")
		s.metadata(sn)
		d := s.init(registered(t, plugins.DiffPlugin))
		differ, err := d.Instance()
		require.NoError(t, err)
		require.Implements(t, (*diff.Comparer)(nil), differ)
		applier, ok := differ.(diff.Applier)
		require.True(t, ok)
		ctx := namespaces.WithNamespace(t.Context(), "default")
		// Mounts of another snapshotter are left to the next differ.
		_, err = applier.Apply(ctx, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer},
			[]mount.Mount{{Type: "bind", Source: t.TempDir() + "/fs"}})
		require.True(t, errdefs.IsNotImplemented(err), "%v", err)
		require.NoError(t, sn.Close())
	}
}

// A plugin that cannot start must not take containerd with it.
func TestFailuresAreSkipped(t *testing.T) {
	s := newSet(t)
	r := registered(t, plugins.SnapshotPlugin)
	r.Config = "nonsense"
	require.True(t, plugin.IsSkipPlugin(s.init(r).Err()))
	d := s.init(registered(t, plugins.DiffPlugin))
	require.True(t, plugin.IsSkipPlugin(d.Err()), "%v", d.Err())

	for root, want := range map[string]string{"relative": "root is", "/dev/null/x": "creating the root directory"} {
		conf := config.DefaultNode()
		conf.Root = root
		r.Config = &conf
		err := newSet(t).init(r).Err()
		require.True(t, plugin.IsSkipPlugin(err))
		require.ErrorContains(t, err, want)
	}
}

func TestProcessorsOfContainerd(t *testing.T) {
	for _, direct := range []string{ocispec.MediaTypeImageLayerGzip, chunk.MediaTypeLayer, chunk.MediaTypeLayerZstd} {
		_, takes := ofContainerd(t.Context(), direct)
		require.False(t, takes, direct)
	}
	run := func(mediaType string) (diff.StreamProcessor, error) {
		start, takes := ofContainerd(t.Context(), mediaType)
		require.True(t, takes)
		return start(t.Context(), diff.NewProcessorChain(mediaType, strings.NewReader("x")), nil)
	}
	for _, unknown := range []string{"application/x", ocispec.MediaTypeImageLayer + "+encrypted", "application/vnd.erofs.layer.v1+encrypted"} {
		_, err := run(unknown)
		require.ErrorContains(t, err, "name a program that makes one of it")
		require.True(t, errdefs.IsNotImplemented(err), unknown)
	}
	diff.RegisterProcessor(diff.StaticHandler("application/ours", func(_ context.Context, s diff.StreamProcessor, _ map[string]typeurl.Any) (diff.StreamProcessor, error) {
		return s, nil
	}))
	diff.RegisterProcessor(diff.StaticHandler("application/broken", func(context.Context, diff.StreamProcessor, map[string]typeurl.Any) (diff.StreamProcessor, error) {
		return nil, errors.New("broken")
	}))
	_, err := run("application/ours")
	require.NoError(t, err)
	_, err = run("application/broken")
	require.EqualError(t, err, "broken")
}
