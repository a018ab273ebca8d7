package differ

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"testing"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	"github.com/containerd/containerd/v2/contrib/diffservice"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// layerStore is containerd's own content store with layers in it.
type layerStore struct{ content.Store }

func newLayerStore(t testing.TB) layerStore {
	t.Helper()
	d := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(d, "blobs"), 0o755)) // which it lists before it makes
	s, err := local.NewLabeledStore(d, memoryLabels{})
	require.NoError(t, err)
	return layerStore{s}
}

// memoryLabels are the labels of a content store, which containerd has in its
// database.
type memoryLabels map[digest.Digest]map[string]string

func (m memoryLabels) Get(d digest.Digest) (map[string]string, error) { return maps.Clone(m[d]), nil }

func (m memoryLabels) Set(d digest.Digest, l map[string]string) error {
	m[d] = maps.Clone(l)
	return nil
}

func (m memoryLabels) Update(d digest.Digest, l map[string]string) (map[string]string, error) {
	all := maps.Clone(m[d])
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, l)
	m[d] = all
	return maps.Clone(all), nil
}

func (s layerStore) add(t testing.TB, mediaType string, blob []byte) ocispec.Descriptor {
	t.Helper()
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	require.NoError(t, content.WriteBlob(t.Context(), s, desc.Digest.String(), bytes.NewReader(blob), desc))
	return desc
}

// snapshotDir is what our snapshotter prepares for a layer.
func snapshotDir(t testing.TB, parent string) (dir string, bind []mount.Mount) {
	t.Helper()
	dir, err := os.MkdirTemp(parent, "snapshot")
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(filepath.Join(dir, MountDir), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, MarkerFile), nil, 0o600))
	return dir, []mount.Mount{{Type: "bind", Source: filepath.Join(dir, MountDir), Options: []string{"rbind", "rw"}}}
}

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return out.Bytes()
}

func zstded(t testing.TB, b []byte) []byte {
	t.Helper()
	enc, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	defer enc.Close()
	return enc.EncodeAll(b, nil)
}

func TestApplyTar(t *testing.T) {
	src := mkTar(t, synthetic(11)...)
	p := filepath.Join(t.TempDir(), "tar")
	require.NoError(t, os.WriteFile(p, src, 0o600))
	want := extract(t, p)
	store := newLayerStore(t)
	for name, l := range map[string]ocispec.Descriptor{
		"tar":                store.add(t, ocispec.MediaTypeImageLayer, src),
		"gzip":               store.add(t, ocispec.MediaTypeImageLayerGzip, gzipped(t, src)),
		"docker":             {MediaType: images.MediaTypeDockerSchema2LayerGzip, Digest: digest.FromBytes(gzipped(t, src)), Size: int64(len(gzipped(t, src)))},
		"zstd":               store.add(t, ocispec.MediaTypeImageLayerZstd, zstded(t, src)),
		"zstd, said to be 1": {MediaType: images.MediaTypeDockerSchema2Layer, Digest: digest.FromBytes(zstded(t, src)), Size: int64(len(zstded(t, src)))},
	} {
		t.Run(name, func(t *testing.T) {
			dir, mounts := snapshotDir(t, t.TempDir())
			var last int64
			got, err := New(store, ServiceConfig{}).Apply(t.Context(), l, mounts, func(_ context.Context, _ ocispec.Descriptor, c *diff.ApplyConfig) error {
				c.Progress = func(n int64) { last = n }
				return nil
			})
			require.NoError(t, err)
			require.Equal(t, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(src), Size: int64(len(src))}, got)
			require.Equal(t, l.Size, last)
			requireSame(t, want, mountFile(t, filepath.Join(dir, LayerFile)))
			requireOnly(t, dir, LayerFile)
		})
	}
}

// requireOnly checks what is in a snapshot's directory besides what was there.
// TestApplyRoom: metadata that is shorter than the room for it, as long, and
// longer, before data and before none.
func TestApplyRoom(t *testing.T) {
	store := newLayerStore(t)
	many := []ent{dir("dir")}
	for i := range 3000 {
		many = append(many, file(fmt.Sprintf("dir/some-rather-long-name-%d", i), ""))
	}
	for name, ents := range map[string][]ent{
		"much metadata":          append(many, file("data", random(1, 300000))),
		"much metadata, no data": many,
		"one file":               {file("data", random(2, 5000))},
		"nothing":                nil,
	} {
		src := mkTar(t, ents...)
		p := filepath.Join(t.TempDir(), "tar")
		require.NoError(t, os.WriteFile(p, src, 0o600))
		want := extract(t, p)
		for _, blob := range [][]byte{src, zstded(t, src)} { // the latter has less room than it needs
			dir, mounts := snapshotDir(t, t.TempDir())
			l := store.add(t, ocispec.MediaTypeImageLayer, blob)
			_, err := New(store, ServiceConfig{}).Apply(t.Context(), l, mounts)
			require.NoError(t, err, name)
			layer := filepath.Join(dir, LayerFile)
			requireSame(t, want, mountFile(t, layer))
			fi, err := os.Stat(layer)
			require.NoError(t, err)
			require.Less(t, fi.Size(), int64(len(src)+roomMost))
			f, err := os.Open(layer)
			require.NoError(t, err)
			_, err = erofs.Parse(f, erofs.DefaultPolicy(fi.Size()))
			require.NoError(t, err, name)
			require.NoError(t, f.Close())
		}
	}
}

func requireOnly(t testing.TB, dir string, names ...string) {
	t.Helper()
	ents, err := os.ReadDir(dir)
	require.NoError(t, err)
	var got []string
	for _, e := range ents {
		if e.Name() != MarkerFile && e.Name() != MountDir {
			got = append(got, e.Name())
		}
	}
	require.Equal(t, names, got)
}

// TestApplyAgrees: the local image holds what the pushed one holds.
func TestApplyAgrees(t *testing.T) {
	src := layerTar(t)
	store := newLayerStore(t)
	res, blob := convertBytes(t, src, Config{})
	dir, mounts := snapshotDir(t, t.TempDir())
	_, err := New(store, ServiceConfig{}).Apply(t.Context(), store.add(t, ocispec.MediaTypeImageLayer, src), mounts)
	require.NoError(t, err)
	requireSame(t, mountImage(t, imageOf(t, blob, res)), mountFile(t, filepath.Join(dir, LayerFile)))
}

// TestApplyOverlay: with parents, the last mount is an overlay whose upper
// directory belongs to the snapshot.
func TestApplyOverlay(t *testing.T) {
	store := newLayerStore(t)
	dir, _ := snapshotDir(t, t.TempDir())
	_, err := New(store, ServiceConfig{}).Apply(t.Context(), store.add(t, ocispec.MediaTypeImageLayer, mkTar(t, file("a", "1"))),
		[]mount.Mount{{Type: "overlay", Options: []string{"workdir=" + dir + "/work", "upperdir=" + dir + "/fs", "lowerdir=/x:/y"}}})
	require.NoError(t, err)
	require.Equal(t, []string{rootLine, "a -644 0:0 size=1 nlink=1"}, list(t, mountFile(t, filepath.Join(dir, LayerFile))))
}

// refusedLayer is a layer that Apply must not accept, and why.
type refusedLayer struct {
	mediaType string
	blob      []byte
	want      string
}

// requireRefused: the reason is clear, no other differ tries, nothing is left.
func requireRefused(t *testing.T, layers map[string]refusedLayer) {
	t.Helper()
	store := newLayerStore(t)
	for name, tc := range layers {
		t.Run(name, func(t *testing.T) {
			desc := store.add(t, tc.mediaType, tc.blob)
			dir, mounts := snapshotDir(t, t.TempDir())
			_, err := New(store, ServiceConfig{}).Apply(t.Context(), desc, mounts)
			require.ErrorContains(t, err, tc.want)
			require.ErrorContains(t, err, desc.Digest.String())
			require.False(t, errdefs.IsNotImplemented(err))
			requireOnly(t, dir)
		})
	}
}

func TestApplyTarRefused(t *testing.T) {
	requireRefused(t, map[string]refusedLayer{
		"not a tar":         {ocispec.MediaTypeImageLayer, []byte(text(1, 100000)), "not a tar archive"},
		"bad entry":         {ocispec.MediaTypeImageLayer, mkTar(t, file("../x", "")), "points outside the layer"},
		"cut off tar":       {ocispec.MediaTypeImageLayer, mkTar(t, file("x", text(1, 9000)))[:5000], "truncated"},
		"cut off in gzip":   {ocispec.MediaTypeImageLayerGzip, gzipped(t, mkTar(t, file("x", text(1, 9000))))[:700], "truncated"},
		"whiteout contents": {ocispec.MediaTypeImageLayer, mkTar(t, file(".wh.x", "1")), "whiteout"},
	})
}

// TestApplyNotOurs: containerd asks its next differ only after ErrNotImplemented.
func TestApplyNotOurs(t *testing.T) {
	store := newLayerStore(t)
	layer := store.add(t, ocispec.MediaTypeImageLayer, mkTar(t, file("a", "1")))
	dir, ours := snapshotDir(t, t.TempDir())
	unmarked := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(unmarked, MountDir), 0o755))
	other := layer
	other.MediaType = "application/vnd.example.layer"
	sealed := layer
	sealed.MediaType = ocispec.MediaTypeImageLayerGzip + "+encrypted"
	unheard := layer
	unheard.MediaType = chunk.MediaTypeLayer + "+gzip"
	for name, tc := range map[string]struct {
		desc   ocispec.Descriptor
		mounts []mount.Mount
	}{
		"media type":        {other, ours},
		"encrypted":         {sealed, ours},
		"compression":       {unheard, ours},
		"no marker":         {layer, []mount.Mount{{Type: "bind", Source: unmarked + "/fs"}}},
		"other directory":   {layer, []mount.Mount{{Type: "bind", Source: dir}}},
		"other file system": {layer, []mount.Mount{{Type: "ext4", Source: dir + "/fs"}}},
		"no upper":          {layer, []mount.Mount{{Type: "overlay", Options: []string{"lowerdir=/x:/y"}}}},
	} {
		_, err := New(store, ServiceConfig{}).Apply(t.Context(), tc.desc, tc.mounts)
		require.True(t, errdefs.IsNotImplemented(err), "%s: %v", name, err)
		if tc.desc.MediaType != layer.MediaType {
			require.ErrorContains(t, err, "[stream_processors]", "what to do")
		}
	}
	ro := []mount.Mount{{Type: "bind", Source: dir + "/fs", Options: []string{"ro"}}}
	_, err := New(store, ServiceConfig{}).Apply(t.Context(), layer, ro)
	require.True(t, errdefs.IsFailedPrecondition(err))
	_, err = New(store, ServiceConfig{}).Apply(t.Context(), layer, nil)
	require.True(t, errdefs.IsInvalidArgument(err))
	requireOnly(t, dir)
}

// TestApplyWithoutInsertRange: a file system that cannot move data by itself,
// and one that is too small.
func TestApplyWithoutInsertRange(t *testing.T) {
	d := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", d, "tmpfs", 0, "size=24m"))
	defer func() { require.NoError(t, unix.Unmount(d, 0)) }()
	store := newLayerStore(t)
	src := layerTar(t)
	dir, mounts := snapshotDir(t, d)
	_, err := New(store, ServiceConfig{}).Apply(t.Context(), store.add(t, ocispec.MediaTypeImageLayer, src), mounts)
	require.NoError(t, err)
	img, err := os.ReadFile(filepath.Join(dir, LayerFile))
	require.NoError(t, err)
	res, blob := convertBytes(t, src, Config{})
	requireSame(t, mountImage(t, imageOf(t, blob, res)), mountImage(t, img))
	require.NoError(t, os.RemoveAll(dir))

	dir, mounts = snapshotDir(t, d)
	_, err = New(store, ServiceConfig{}).Apply(t.Context(), store.add(t, ocispec.MediaTypeImageLayer, mkTar(t, file("x", random(1, 30<<20)))), mounts)
	require.ErrorIs(t, err, unix.ENOSPC)
	requireOnly(t, dir)
}

func TestMoveUp(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	require.NoError(t, err)
	defer f.Close()
	data := random(1, 3<<20+blockSize)
	_, err = f.WriteString(data)
	require.NoError(t, err)
	require.NoError(t, moveUp(f, blockSize, int64(len(data))))
	got := make([]byte, len(data))
	_, err = f.ReadAt(got, blockSize)
	require.NoError(t, err)
	require.True(t, data == string(got))
}

func TestApplyCancelled(t *testing.T) {
	store := newLayerStore(t)
	src := layerTar(t)
	_, blob := convertBytes(t, src, Config{})
	_, image := convertBytes(t, src, Config{Form: Raw})
	before := openFiles(t)
	for _, desc := range []ocispec.Descriptor{
		store.add(t, chunk.MediaTypeLayerZstd, blob),
		store.add(t, chunk.MediaTypeLayer, image),
		store.add(t, ocispec.MediaTypeImageLayer, src),
		store.add(t, ocispec.MediaTypeImageLayerZstd, zstded(t, src)),
	} {
		dir, mounts := snapshotDir(t, t.TempDir())
		ctx, cancel := context.WithCancel(t.Context())
		_, err := New(store, ServiceConfig{}).Apply(ctx, desc, mounts, func(_ context.Context, _ ocispec.Descriptor, c *diff.ApplyConfig) error {
			c.Progress = func(int64) { cancel() }
			return nil
		})
		cancel()
		require.ErrorIs(t, err, context.Canceled)
		requireOnly(t, dir)
	}
	closesAll(t, before)
}

// TestService: containerd reaches the differ over a socket, and acts on the kind
// of an error.
func TestService(t *testing.T) {
	store := newLayerStore(t)
	srv := grpc.NewServer()
	diffapi.RegisterDiffServer(srv, diffservice.FromApplierAndComparer(New(store, ServiceConfig{}), New(store, ServiceConfig{})))
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	defer func() {
		srv.Stop()
		if err := <-served; err != nil && !errors.Is(err, io.EOF) {
			require.NoError(t, err)
		}
	}()
	conn, err := grpc.NewClient("unix:"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer conn.Close()
	client := proxy.NewDiffApplier(diffapi.NewDiffClient(conn)).(interface {
		diff.Applier
		diff.Comparer
	})
	src := mkTar(t, file("a", "1"))
	desc := store.add(t, ocispec.MediaTypeImageLayer, src)
	dir, mounts := snapshotDir(t, t.TempDir())
	got, err := client.Apply(t.Context(), desc, mounts)
	require.NoError(t, err)
	require.Equal(t, digest.FromBytes(src), got.Digest)
	requireOnly(t, dir, LayerFile)
	_, err = client.Apply(t.Context(), desc, []mount.Mount{{Type: "bind", Source: t.TempDir()}})
	require.True(t, errdefs.IsNotImplemented(err), "%v", err)
	_, err = client.Compare(t.Context(), mounts, mounts)
	require.True(t, errdefs.IsNotImplemented(err), "%v", err)
}
