package mounts

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/cmd/lazyerofs/internal/image"
)

// remoteSnapshotter answers like a remote snapshotter on top of containerd's
// overlay one: a layer that carries the label "lazy" becomes a committed
// snapshot with one file in it, any other one is a miss.
type remoteSnapshotter struct {
	snapshots.Snapshotter
	t        *testing.T
	prepared []map[string]string
}

const lazyLabel = "containerd.io/snapshot/test.lazy"

func (r *remoteSnapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	var info snapshots.Info
	for _, o := range opts {
		require.NoError(r.t, o(&info))
	}
	name := info.Labels[labelSnapshotRef]
	if name == "" || info.Labels[lazyLabel] == "" {
		return r.Snapshotter.Prepare(ctx, key, parent, opts...)
	}
	r.prepared = append(r.prepared, info.Labels)
	ms, err := r.Snapshotter.Prepare(ctx, key, parent)
	if err != nil {
		return nil, err
	}
	err = mount.WithTempMount(ctx, ms, func(root string) error {
		return os.WriteFile(filepath.Join(root, info.Labels[lazyLabel]), []byte("data"), 0o644)
	})
	require.NoError(r.t, err)
	require.NoError(r.t, r.Commit(ctx, name, key))
	return nil, errdefs.ErrAlreadyExists
}

func newClient(t *testing.T) (*Client, *remoteSnapshotter) {
	sn, err := overlay.NewSnapshotter(t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, sn.Close()) })
	r := &remoteSnapshotter{Snapshotter: sn, t: t}
	return &Client{Snapshotter: r}, r
}

// newImage makes an image with one layer for each name; a name that starts
// with "!" is a layer that cannot be loaded lazily.
func newImage(names ...string) *image.Image {
	img := &image.Image{Ref: "localhost/test:1", Desc: ocispec.Descriptor{Digest: digest.FromString("manifest")}}
	for _, n := range names {
		l := ocispec.Descriptor{Digest: digest.FromString("layer " + n), Annotations: map[string]string{"org.example": "dropped"}}
		if !strings.HasPrefix(n, "!") {
			l.Annotations[lazyLabel] = n
		}
		img.Manifest.Layers = append(img.Manifest.Layers, l)
		img.Config.RootFS.DiffIDs = append(img.Config.RootFS.DiffIDs, digest.FromString("diff "+n))
	}
	return img
}

func countSnapshots(t *testing.T, c *Client) int {
	n := 0
	require.NoError(t, c.Snapshotter.Walk(t.Context(), func(context.Context, snapshots.Info) error { n++; return nil }))
	return n
}

func TestMountShowsEveryLayerAndUnmountLeavesNothing(t *testing.T) {
	c, r := newClient(t)
	dir := t.TempDir()
	img := newImage("a", "b", "c")
	require.NoError(t, c.Mount(t.Context(), img, dir, false))
	for _, n := range []string{"a", "b", "c"} {
		b, err := os.ReadFile(filepath.Join(dir, n))
		require.NoError(t, err)
		require.Equal(t, "data", string(b))
	}
	require.ErrorContains(t, os.WriteFile(filepath.Join(dir, "x"), nil, 0o644), "read-only")

	chains := img.ChainIDs()
	require.Len(t, r.prepared, 3)
	top := r.prepared[2]
	require.Equal(t, chains[2], top[labelSnapshotRef])
	require.Equal(t, chains[1], top[labelParentChain])
	require.Equal(t, img.Ref, top["containerd.io/snapshot/cri.image-ref"])
	require.Equal(t, img.Desc.Digest.String(), top["containerd.io/snapshot/cri.manifest-digest"])
	require.NotContains(t, top, "org.example")
	require.NotContains(t, r.prepared[0], labelParentChain)

	dirs, err := c.Dirs(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{dir}, dirs)
	require.NoError(t, c.Unmount(t.Context(), dir))
	require.Zero(t, countSnapshots(t, c))
	mounted, err := mountinfo.Mounted(dir)
	require.NoError(t, err)
	require.False(t, mounted)
}

func TestMountsShareLayersUntilTheLastOneGoes(t *testing.T) {
	c, r := newClient(t)
	one, two := t.TempDir(), t.TempDir()
	require.NoError(t, c.Mount(t.Context(), newImage("a", "b"), one, false))
	require.NoError(t, c.Mount(t.Context(), newImage("a", "c"), two, true))
	require.Len(t, r.prepared, 3, "layer a is asked for once")
	require.NoError(t, os.WriteFile(filepath.Join(two, "x"), nil, 0o644))

	require.NoError(t, c.Unmount(t.Context(), one))
	b, err := os.ReadFile(filepath.Join(two, "a"))
	require.NoError(t, err)
	require.Equal(t, "data", string(b))
	require.NoError(t, c.Unmount(t.Context(), two))
	require.Zero(t, countSnapshots(t, c))
}

func TestMountRefuses(t *testing.T) {
	c, _ := newClient(t)
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o644))
	require.ErrorContains(t, c.Mount(t.Context(), newImage("a"), file, false), "is not a directory")
	require.ErrorContains(t, c.Mount(t.Context(), newImage("a"), filepath.Join(file, "x"), false), "finding directory")

	dir := t.TempDir()
	require.EqualError(t, c.Unmount(t.Context(), dir), "no image is mounted at "+dir+" by lazyerofs")
	require.EqualError(t, NotMounted(dir), "no image is mounted at "+dir+" by lazyerofs")
	require.ErrorContains(t, NotMounted(dir+"/x"), "finding directory")
	fresh, _ := newClient(t)
	dirs, err := fresh.Dirs(t.Context())
	require.NoError(t, err, "there is no list yet")
	require.Empty(t, dirs)

	var notLazy *NotLazyError
	err = c.Mount(t.Context(), newImage("a", "!b"), dir, false)
	require.ErrorAs(t, err, &notLazy)
	require.Equal(t, digest.FromString("layer !b").String(), notLazy.Layer)
	require.ErrorContains(t, err, "lazyerofs convert localhost/test:1 DST")
	require.Zero(t, countSnapshots(t, c), "a failed mount keeps no layer")

	require.NoError(t, c.Mount(t.Context(), newImage("a"), dir, false))
	require.ErrorContains(t, c.Mount(t.Context(), newImage("a"), dir, false), "mounted at "+dir+" already")
	require.NoError(t, c.Unmount(t.Context(), dir))
}

func TestLayerListFitsIntoALabel(t *testing.T) {
	layers := make([]ocispec.Descriptor, 200)
	for i := range layers {
		layers[i].Digest = digest.FromBytes([]byte{byte(i)})
	}
	list := layerList(layers)
	require.LessOrEqual(t, len(list), 4096)
	require.Greater(t, strings.Count(list, ","), 40)
	require.NotContains(t, list, ",,")
	require.Equal(t, layers[0].Digest.String(), list[:len(layers[0].Digest)])
}
