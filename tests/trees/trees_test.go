package trees

import (
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// TestRealImage converts every layer of a real image in both forms, twice, and looks
// at it through the kernel beside the tree that containerd extracts from its tar.
// TestImagesThereAndBack does the latter with more images.
func TestRealImage(t *testing.T) {
	testenv.RequireRoot(t)
	r, err := testenv.GoToolchain(t.Context())
	require.NoError(t, err)
	img, err := r.Build(t.Context(), func(s string) { t.Log(s) })
	require.NoError(t, err)
	for _, layer := range img.Layers {
		t.Run(layer.Digest.Encoded()[:12], func(t *testing.T) { checkLayer(t, img, layer) })
	}
}

func checkLayer(t *testing.T, img *testenv.Image, layer ocispec.Descriptor) {
	blob := filepath.Join(img.Dir, "blobs", layer.Digest.Algorithm().String(), layer.Digest.Encoded())
	dir := t.TempDir()
	want := filepath.Join(dir, "want")
	extract(t, blob, want)

	encoded := filepath.Join(dir, "layer")
	first := convert(t, blob, encoded, differ.Config{})
	plain := filepath.Join(dir, "plain")
	decompress(t, blob, plain)
	again := convert(t, plain, filepath.Join(dir, "again"), differ.Config{Workers: 1})
	require.Equal(t, first.Descriptor, again.Descriptor, "the same tar must give the same blob, decompressed as well")
	require.Zero(t, again.SpoolSize)
	require.NoError(t, os.Remove(plain))
	require.NoError(t, os.Remove(filepath.Join(dir, "again")))
	t.Logf("tar %d, blob %d, image %d, metadata %d, index %d bytes, %d inodes",
		first.TarSize, first.Descriptor.Size, first.ImageSize, first.MetaSize, first.IndexSize, first.Inodes)

	image := filepath.Join(dir, "image")
	decode(t, encoded, image)
	requireEqualThroughKernel(t, want, image, filepath.Join(dir, "zstd"))
	require.NoError(t, os.Remove(image))

	raw := filepath.Join(dir, "raw")
	r := convert(t, blob, raw, differ.Config{Form: differ.Raw})
	require.Equal(t, r.Descriptor.Digest, r.DiffID)
	require.Equal(t, first.TarDiffID, r.TarDiffID)
	requireEqualThroughKernel(t, want, raw, filepath.Join(dir, "mnt-raw"))
}

// extract unpacks the tar to a new directory as containerd does below an overlay.
func extract(t *testing.T, blob, to string) {
	t.Helper()
	require.NoError(t, os.Mkdir(to, 0o755))
	apply(t, blob, to, archive.WithConvertWhiteout(archive.OverlayConvertWhiteout))
	// These tars do not name the root: its time is that of the extraction here
	// and 1970 in an image.
	require.NoError(t, os.Chtimes(to, time.Unix(0, 0), time.Unix(0, 0)))
}

// apply lays a tar over what is there, as containerd does.
func apply(t *testing.T, blob, to string, opts ...archive.ApplyOpt) {
	t.Helper()
	f, err := os.Open(blob)
	require.NoError(t, err)
	defer f.Close()
	r, err := compression.DecompressStream(f)
	require.NoError(t, err)
	_, err = archive.Apply(t.Context(), to, r, opts...)
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, r)
	require.NoError(t, err)
	require.NoError(t, r.Close())
}

// decompress writes the tar of a layer.
func decompress(t *testing.T, blob, to string) {
	t.Helper()
	f, err := os.Open(blob)
	require.NoError(t, err)
	defer f.Close()
	r, err := compression.DecompressStream(f)
	require.NoError(t, err)
	defer r.Close()
	writeFile(t, to, r)
}

func writeFile(t *testing.T, to string, r io.Reader) {
	t.Helper()
	out, err := os.Create(to)
	require.NoError(t, err)
	_, err = io.Copy(out, r)
	require.NoError(t, err)
	require.NoError(t, out.Close())
}

func convert(t *testing.T, blob, to string, cfg differ.Config) differ.Result {
	in, err := os.Open(blob)
	require.NoError(t, err)
	defer in.Close()
	st, err := in.Stat()
	require.NoError(t, err)
	out, err := os.Create(to)
	require.NoError(t, err)
	cfg.SpoolDir = t.TempDir()
	r, err := differ.ConvertAt(t.Context(), in, st.Size(), out, cfg)
	require.NoError(t, err)
	require.NoError(t, out.Close())
	return r
}

// decode writes what a zstd decoder that knows nothing of chunks makes of the
// blob.
func decode(t *testing.T, blob, to string) {
	in, err := os.Open(blob)
	require.NoError(t, err)
	defer in.Close()
	dec, err := zstd.NewReader(in)
	require.NoError(t, err)
	defer dec.Close()
	writeFile(t, to, dec)
}

func requireEqualThroughKernel(t *testing.T, want, image, at string) {
	require.NoError(t, os.Mkdir(at, 0o755))
	_, err := erofs.Mount(t.Context(), erofs.MountConfig{Source: image, Target: at})
	require.NoError(t, err)
	defer func() { require.NoError(t, erofs.Unmount(at)) }()
	diffs, err := Compare(want, at)
	require.NoError(t, err)
	require.Empty(t, diffs)
}
