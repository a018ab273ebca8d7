package differ

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// TestCompareNative: the layer over the same parent is what the container saw, the
// strict parser accepts it, and a second comparison gives the same bytes.
func TestCompareNative(t *testing.T) {
	b := newBox(t, "", oldFiles(t))
	changeAll(t, b.merged)
	want := b.tree(t)
	for mediaType, form := range map[string]string{"": chunk.MediaTypeLayerZstd, chunk.MediaTypeLayerZstd: chunk.MediaTypeLayerZstd, chunk.MediaTypeLayer: chunk.MediaTypeLayer} {
		t.Run(form, func(t *testing.T) {
			store := newLayerStore(t)
			desc, blob := b.compare(t, store, diff.WithMediaType(mediaType), diff.WithLabels(map[string]string{"mine": "1"}))
			require.Equal(t, form, desc.MediaType)
			require.Equal(t, digest.FromBytes(blob), desc.Digest)
			require.Equal(t, form, desc.Annotations[chunk.LabelMediaType])

			info, err := store.Info(t.Context(), desc.Digest)
			require.NoError(t, err)
			diffID := digest.Digest(info.Labels["containerd.io/uncompressed"])
			require.Equal(t, "1", info.Labels["mine"])
			require.Equal(t, desc.Annotations[chunk.AnnotationIndexDigest], info.Labels[chunk.AnnotationIndexDigest])

			img := imageOf(t, blob, Result{Descriptor: desc, DiffID: diffID, ImageSize: int64(len(blob))})
			size, err := imageSize(img[:superOff+superLen])
			require.NoError(t, err)
			_, err = erofs.Parse(bytes.NewReader(img[:size]), erofs.DefaultPolicy(size))
			require.NoError(t, err)
			requireTrees(t, want, b.restack(t, mountImage(t, img[:size])))

			again, _ := b.compare(t, newLayerStore(t), diff.WithMediaType(mediaType))
			require.Equal(t, desc, again)

			dir, mounts := snapshotDir(t, t.TempDir()) // and it can be unpacked
			got, err := New(store, ServiceConfig{}).Apply(t.Context(), desc, mounts)
			require.NoError(t, err)
			require.Equal(t, diffID, got.Digest)
			requireTrees(t, want, b.restack(t, mountFile(t, dir+"/"+LayerFile)))
		})
	}
}

// TestCompareTar: containerd's own unpacking makes of the tar what the container
// saw, and our differ a layer that does.
func TestCompareTar(t *testing.T) {
	b := newBox(t, "", oldFiles(t))
	changeAll(t, b.merged)
	want := b.tree(t)
	for p, n := range want {
		n.mtime = n.mtime / 1e9 * 1e9
		want[p] = n
	}
	for _, mediaType := range []string{ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd, images.MediaTypeDockerSchema2LayerGzip} {
		t.Run(mediaType, func(t *testing.T) {
			store := newLayerStore(t)
			desc, blob := b.compare(t, store, diff.WithMediaType(mediaType))
			require.Equal(t, mediaType, desc.MediaType)
			src := plainTar(t, mediaType, blob)
			info, err := store.Info(t.Context(), desc.Digest)
			require.NoError(t, err)
			require.Equal(t, digest.FromBytes(src).String(), info.Labels["containerd.io/uncompressed"])

			copied := t.TempDir()
			require.NoError(t, os.CopyFS(copied, os.DirFS(b.lower)))
			_, err = archive.Apply(t.Context(), copied, bytes.NewReader(src))
			require.NoError(t, err)
			got := scanTree(t, copied)
			for p, n := range want {
				g, ok := got[p]
				require.True(t, ok, "%q", p)
				if p == "." || n.mode&unix.S_IFMT == unix.S_IFDIR || strings.HasPrefix(n.data, "old") {
					continue
				}
				if _, err := os.Lstat(filepath.Join(b.upper, p)); err == nil {
					require.Equal(t, n, g, "%q", p)
				}
			}
			require.Len(t, got, len(want))

			dir, mounts := snapshotDir(t, t.TempDir())
			_, err = New(store, ServiceConfig{}).Apply(t.Context(), desc, mounts)
			require.NoError(t, err)
			again := b.restack(t, mountFile(t, dir+"/"+LayerFile))
			for p, n := range again {
				n.mtime = n.mtime / 1e9 * 1e9
				again[p] = n
			}
			again["."] = want["."] // a tar says nothing of a usual root
			requireTrees(t, want, again)
		})
	}
}

func plainTar(t testing.TB, mediaType string, blob []byte) []byte {
	r := io.Reader(bytes.NewReader(blob))
	var err error
	switch {
	case strings.HasSuffix(mediaType, "gzip"):
		r, err = gzip.NewReader(r)
	case strings.HasSuffix(mediaType, "zstd"):
		r, err = zstd.NewReader(r)
	}
	require.NoError(t, err)
	if z, ok := r.(*zstd.Decoder); ok {
		defer z.Close()
	}
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	return b
}

// TestCompareUserXattr: overlayfs in a user namespace marks with user.overlay.*.
func TestCompareUserXattr(t *testing.T) {
	b := newBox(t, ",userxattr", oldFiles(t))
	require.NoError(t, os.RemoveAll(b.merged+"/again"))
	write(t, b.merged+"/again/new", "new")
	require.NoError(t, os.Remove(b.merged+"/deleted"))
	b.mounts[0].Options = append(b.mounts[0].Options, "userxattr")
	_, blob := b.compare(t, newLayerStore(t), diff.WithMediaType(ocispec.MediaTypeImageLayer))
	require.Equal(t, []string{"again/", "again/.wh..wh..opq", "again/new", ".wh.deleted"}, tarNames(t, blob))
	require.NotContains(t, string(blob), "user.overlay")
}

func tarNames(t testing.TB, b []byte) []string {
	var names []string
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return names
		}
		require.NoError(t, err)
		names = append(names, h.Name)
	}
}

// TestCompareNeedsBelow: what only the layers below know is not guessed.
func TestCompareNeedsBelow(t *testing.T) {
	for option, change := range map[string]func(m string) error{
		",redirect_dir=on": func(m string) error { return os.Rename(m+"/dir", m+"/dir2") },
		",metacopy=on":     func(m string) error { return os.Chmod(m+"/kept", 0o600) },
	} {
		b := newBox(t, option, oldFiles(t))
		require.NoError(t, change(b.merged))
		store := newLayerStore(t)
		_, err := b.differ(store).Compare(t.Context(), b.parent, b.mounts)
		require.True(t, errdefs.IsNotImplemented(err), "%v", err)
		requireNothing(t, store)
	}
}

// requireNothing: no blob and no unfinished one.
func requireNothing(t testing.TB, store layerStore) {
	t.Helper()
	require.NoError(t, store.Walk(t.Context(), func(i content.Info) error { return fmt.Errorf("%s is there", i.Digest) }))
	open, err := store.ListStatuses(t.Context())
	require.NoError(t, err)
	require.Empty(t, open)
}

// TestCompareOnlyOurs: containerd asks its next differ only after
// ErrNotImplemented.
func TestCompareOnlyOurs(t *testing.T) {
	b := newBox(t, "", oldFiles(t))
	store := newLayerStore(t)
	over := func(o ...string) []mount.Mount { return []mount.Mount{{Type: "overlay", Options: o}} }
	empty := filepath.Join(b.snaps, "8", MountDir)
	require.NoError(t, os.MkdirAll(empty, 0o755))
	view := []mount.Mount{{Type: "bind", Source: empty, Options: []string{"ro"}}}
	for name, tc := range map[string][2][]mount.Mount{
		"no mount":         {b.parent, nil},
		"other kind":       {b.parent, {{Type: "ext4", Source: b.upper}}},
		"other directory":  {b.parent, over("upperdir=/tmp/7/fs", "lowerdir=/gone/l/2:/gone/l/1")},
		"not clean":        {b.parent, over("upperdir="+b.snaps+"/../snapshots/7/fs", "lowerdir=/gone/l/2:/gone/l/1")},
		"not the parent":   {over("ro", "lowerdir=/gone/l/3:/gone/l/1"), b.mounts},
		"parent is more":   {over("ro", "lowerdir=/gone/l/3:/gone/l/2:/gone/l/1"), b.mounts},
		"data-only layers": {b.parent, over("upperdir="+b.upper, "lowerdir=/gone/l/2::/gone/l/1")},
		"lowerdir+":        {b.parent, over("upperdir="+b.upper, "lowerdir+=/gone/l/2")},
		"lazy layer":       {over("ro", "lowerdir=/gone/l/2:/gone/l/1"), over("ro", "lowerdir=/gone/l/3:/gone/l/2:/gone/l/1")},
		"nothing above":    {b.parent, view},
	} {
		_, err := b.differ(store).Compare(t.Context(), tc[0], tc[1])
		require.True(t, errdefs.IsNotImplemented(err), "%s: %v", name, err)
	}
	_, err := New(store, ServiceConfig{}).Compare(t.Context(), b.parent, b.mounts)
	require.True(t, errdefs.IsNotImplemented(err), "%v", err)
	_, err = b.differ(store).Compare(t.Context(), b.parent, b.mounts, diff.WithMediaType(chunk.MediaTypeDraftLayer))
	require.True(t, errdefs.IsNotImplemented(err), "%v", err)

	write(t, filepath.Join(b.snaps, "7", LayerFile), "")
	_, err = b.differ(store).Compare(t.Context(), b.parent, b.mounts)
	require.True(t, errdefs.IsFailedPrecondition(err), "%v", err)
	requireNothing(t, store)
}

// TestCompareStacks: snapshots without a parent, and committed ones, which have no
// upper directory but a top one.
func TestCompareStacks(t *testing.T) {
	snaps := t.TempDir()
	for _, p := range []string{"1/fs", "2/fs", "3/fs"} {
		require.NoError(t, os.MkdirAll(filepath.Join(snaps, p), 0o755))
	}
	write(t, snaps+"/1/fs/one", "1")
	write(t, snaps+"/2/fs/two", "2")
	bind := func(id string) []mount.Mount {
		return []mount.Mount{{Type: "bind", Source: snaps + "/" + id + "/fs", Options: []string{"ro"}}}
	}
	view := []mount.Mount{{Type: "overlay", Options: []string{"ro", "lowerdir=" + snaps + "/2/fs:" + snaps + "/1/fs"}}}
	store := newLayerStore(t)
	d := New(store, ServiceConfig{Snapshots: snaps + "/", MediaType: ocispec.MediaTypeImageLayer})
	for _, tc := range []struct {
		lower, upper []mount.Mount
		want         string
	}{{bind("3"), bind("1"), "one"}, {nil, bind("1"), "one"}, {bind("1"), view, "two"}} {
		desc, err := d.Compare(t.Context(), tc.lower, tc.upper)
		require.NoError(t, err)
		blob, err := content.ReadBlob(t.Context(), store, desc)
		require.NoError(t, err)
		require.Equal(t, []string{tc.want}, tarNames(t, blob))
	}
	desc, err := d.Compare(t.Context(), nil, bind("1"), diff.WithReference("checkpoint-rw-x"))
	require.NoError(t, err)
	require.Equal(t, ocispec.MediaTypeImageLayerGzip, desc.MediaType)
}

// TestCompareSourceDateEpoch: no file is younger than the caller wants.
func TestCompareSourceDateEpoch(t *testing.T) {
	b := newBox(t, "", oldFiles(t))
	write(t, b.merged+"/now", "")
	require.NoError(t, os.Chtimes(b.merged+"/kept", time.Time{}, time.Unix(1000, 0)))
	_, blob := b.compare(t, newLayerStore(t), diff.WithMediaType(ocispec.MediaTypeImageLayer), diff.WithSourceDateEpoch(new(time.Unix(2000, 0))))
	r := tar.NewReader(bytes.NewReader(blob))
	for _, want := range []int64{1000, 2000} {
		h, err := r.Next()
		require.NoError(t, err)
		require.Equal(t, want, h.ModTime.Unix(), h.Name)
	}
}

// TestCompareMarkNames: a file that is called like a whiteout can be in a native
// layer only.
func TestCompareMarkNames(t *testing.T) {
	b := newBox(t, "", oldFiles(t))
	write(t, b.merged+"/.wh.kept", "data")
	store := newLayerStore(t)
	_, err := b.differ(store).Compare(t.Context(), b.parent, b.mounts, diff.WithMediaType(ocispec.MediaTypeImageLayerZstd))
	require.ErrorContains(t, err, `".wh.kept" would delete`)
	requireNothing(t, store)
	_, blob := b.compare(t, store, diff.WithMediaType(chunk.MediaTypeLayer))
	size, err := imageSize(blob[:superOff+superLen])
	require.NoError(t, err)
	requireTrees(t, b.tree(t), b.restack(t, mountImage(t, blob[:size])))
}

// metaStore is containerd's own content store with its database: namespaces,
// leases and garbage collection.
func metaStore(t testing.TB) *metadata.DB {
	t.Helper()
	d := t.TempDir()
	db, err := bbolt.Open(filepath.Join(d, "meta.db"), 0o600, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	s, err := local.NewStore(d)
	require.NoError(t, err)
	m := metadata.NewDB(db, s, nil)
	require.NoError(t, m.Init(t.Context()))
	return m
}

// TestCompareLeases: what was written survives a garbage collection, also if it
// was there before and nobody kept it; after an error no lease is left.
func TestCompareLeases(t *testing.T) {
	b := newBox(t, "", oldFiles(t))
	write(t, b.merged+"/new", "1")
	db := metaStore(t)
	ctx := namespaces.WithNamespace(t.Context(), "one")
	lm := metadata.NewLeaseManager(db)
	d := New(db.ContentStore(), ServiceConfig{Snapshots: b.snaps, Leases: lm})
	collect := func() {
		_, err := db.GarbageCollect(ctx)
		require.NoError(t, err)
	}
	leased := func() []leases.Lease {
		all, err := lm.List(ctx)
		require.NoError(t, err)
		return all
	}
	desc, err := d.Compare(ctx, b.parent, b.mounts)
	require.NoError(t, err)
	collect()
	require.Len(t, leased(), 1)
	require.NotEmpty(t, leased()[0].Labels["containerd.io/gc.expire"])
	_, err = db.ContentStore().Info(ctx, desc.Digest)
	require.NoError(t, err)

	first := leased()[0]
	_, err = d.Compare(ctx, b.parent, b.mounts, diff.WithLabels(map[string]string{"mine": "2"}))
	require.NoError(t, err)
	require.NoError(t, lm.Delete(ctx, first)) // the second lease keeps it alone
	collect()
	info, err := db.ContentStore().Info(ctx, desc.Digest)
	require.NoError(t, err)
	require.Equal(t, "2", info.Labels["mine"])
	require.NoError(t, lm.Delete(ctx, leased()[0]))
	collect()
	_, err = db.ContentStore().Info(ctx, desc.Digest)
	require.True(t, errdefs.IsNotFound(err), "%v", err)

	theirs, err := lm.Create(ctx, leases.WithID("theirs"))
	require.NoError(t, err)
	_, err = d.Compare(leases.WithLease(ctx, theirs.ID), b.parent, b.mounts)
	require.NoError(t, err)
	require.Equal(t, []leases.Lease{theirs}, leased(), "the caller's own lease is enough")
	kept, err := lm.ListResources(ctx, theirs)
	require.NoError(t, err)
	require.Equal(t, []leases.Resource{{ID: desc.Digest.String(), Type: "content"}}, kept)

	require.NoError(t, unix.Setxattr(b.upper+"/new", "trusted.overlay.metacopy", nil, 0))
	_, err = d.Compare(ctx, b.parent, b.mounts)
	require.Error(t, err)
	require.Len(t, leased(), 1)
}

// TestCompareCancelled: nothing is left.
func TestCompareCancelled(t *testing.T) {
	b := newBox(t, "", oldFiles(t))
	changeAll(t, b.merged)
	store := newLayerStore(t)
	before := openFiles(t)
	for _, mediaType := range []string{"", ocispec.MediaTypeImageLayerGzip} {
		ctx, cancel := context.WithCancel(t.Context())
		d := New(cancelStore{store, cancel}, ServiceConfig{Snapshots: b.snaps})
		_, err := d.Compare(ctx, b.parent, b.mounts, diff.WithMediaType(mediaType))
		require.ErrorIs(t, err, context.Canceled)
		cancel()
		requireNothing(t, store)
	}
	closesAll(t, before)
}

// cancelStore ends the caller's context as soon as it is used.
type cancelStore struct {
	content.Store
	cancel func()
}

func (s cancelStore) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	w, err := s.Store.Writer(ctx, opts...)
	s.cancel()
	return w, err
}

// TestFileDataCut: a file that gets shorter meanwhile is an error, never zeros.
func TestFileDataCut(t *testing.T) {
	p := filepath.Join(t.TempDir(), "f")
	write(t, p, text(1, 100000))
	f, err := os.Open(p)
	require.NoError(t, err)
	r := &fileData{ctx: t.Context(), f: f, size: 100000}
	defer r.close()
	_, err = io.ReadFull(r, make([]byte, 5000))
	require.NoError(t, err)
	require.NoError(t, os.Truncate(p, 50000))
	_, err = io.Copy(io.Discard, r)
	require.ErrorContains(t, err, "pause the container")
}
