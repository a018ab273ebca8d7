package inspect

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
	"github.com/lazyerofs/lazyerofs/fs/format/all"
	"github.com/lazyerofs/lazyerofs/fs/format/formattest"
	"github.com/lazyerofs/lazyerofs/fs/remote"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// layers converts tars of n files each into one image.
func layers(t *testing.T, counts ...int) (*Subject, map[string][]byte, []differ.Result) {
	return layersWith(t, differ.Config{}, counts...)
}

func layersWith(t *testing.T, cfg differ.Config, counts ...int) (*Subject, map[string][]byte, []differ.Result) {
	cfg.SpoolDir = t.TempDir()
	img := &Subject{Ref: "localhost/test:1"}
	blobs := map[string][]byte{}
	var results []differ.Result
	for _, n := range counts {
		var tarball, blob bytes.Buffer
		w := tar.NewWriter(&tarball)
		body := make([]byte, 300<<10)
		_, err := rand.Read(body)
		require.NoError(t, err)
		for i := range n {
			size := len(body) / (1 + i%7)
			require.NoError(t, w.WriteHeader(&tar.Header{Name: fmt.Sprintf("d%d/file-%d", i%9, i), Mode: 0o644, Size: int64(size)}))
			_, err := w.Write(body[:size])
			require.NoError(t, err)
		}
		require.NoError(t, w.Close())
		r, err := differ.Convert(t.Context(), &tarball, &blob, cfg)
		require.NoError(t, err)
		blobs[r.Descriptor.Digest.String()] = blob.Bytes()
		img.Manifest.Layers = append(img.Manifest.Layers, r.Descriptor)
		results = append(results, r)
	}
	img.Open = opener(t, blobs)
	return img, blobs, results
}

// opener opens blobs, and fails the test if one of them was not closed.
func opener(t *testing.T, blobs map[string][]byte) func(context.Context, ocispec.Descriptor) (remote.Blob, func() error, error) {
	open := 0
	t.Cleanup(func() { require.Zero(t, open, "blobs that were not closed") })
	return func(_ context.Context, d ocispec.Descriptor) (remote.Blob, func() error, error) {
		open++
		return formattest.NewBlob(blobs[d.Digest.String()]), func() error { open--; return nil }, nil
	}
}

// refuse is what opens no blob, but fails with err.
func refuse(err error) func(context.Context, ocispec.Descriptor) (remote.Blob, func() error, error) {
	return func(context.Context, ocispec.Descriptor) (remote.Blob, func() error, error) { return nil, nil, err }
}

func TestRunAgreesWithTheConverter(t *testing.T) {
	img, _, results := layers(t, 40, 400)
	got, err := Run(t.Context(), img, all.All())
	require.NoError(t, err)
	require.True(t, got.Lazy)
	for i, r := range results {
		l := got.Layers[i]
		require.True(t, l.Lazy, l.Reason)
		require.Equal(t, r.ImageSize, l.ImageSize)
		require.Equal(t, r.MetaSize, l.MetaSize)
		require.Equal(t, r.Inodes, l.Inodes)
		require.Equal(t, r.Descriptor.Size, l.Size)
		require.Positive(t, l.MetaStored)
		require.Less(t, l.MetaStored, l.MetaSize)
		require.Positive(t, l.IndexSize)
		require.Equal(t, "5.4", l.Kernel, "plain files only")
	}
	var out bytes.Buffer
	require.NoError(t, got.Print(&out))
	require.Contains(t, out.String(), "loads lazily")
	require.Contains(t, out.String(), "5.4+")
}

func TestRunReportsLayersThatAreNotLazy(t *testing.T) {
	img, blobs, _ := layers(t, 5, 5, 5)
	img.Manifest.Layers[0].MediaType = ocispec.MediaTypeImageLayerGzip
	img.Manifest.Layers[1].Annotations = nil
	b := blobs[img.Manifest.Layers[2].Digest.String()]
	b[len(b)/2] ^= 1
	b[10] ^= 1
	got, err := Run(t.Context(), img, all.All())
	require.NoError(t, err)
	require.False(t, got.Lazy)
	for _, l := range got.Layers {
		require.False(t, l.Lazy)
		require.NotEmpty(t, l.Reason)
	}
	require.Contains(t, got.Layers[0].Reason, "convert the image")
	require.Contains(t, got.Layers[2].Reason, "corrupt")
	var out bytes.Buffer
	require.NoError(t, got.Print(&out))
	require.Contains(t, out.String(), "does not load lazily")
}

func TestRunFailsWhenTheRegistryDoes(t *testing.T) {
	img, _, _ := layers(t, 5)
	down := errors.New("connection refused")
	img.Open = refuse(down)
	_, err := Run(t.Context(), img, all.All())
	require.ErrorIs(t, err, down)
}

// TestRunFailsWhenABlobCannotBeClosed: a file that reports a late error was perhaps
// not read whole.
func TestRunFailsWhenABlobCannotBeClosed(t *testing.T) {
	img, _, _ := layers(t, 5)
	late := errors.New("input/output error")
	open := img.Open
	img.Open = func(ctx context.Context, d ocispec.Descriptor) (remote.Blob, func() error, error) {
		b, done, err := open(ctx, d)
		return b, func() error { return errors.Join(done(), late) }, err
	}
	_, err := Run(t.Context(), img, all.All())
	require.ErrorIs(t, err, late)
	_, err = Compare(t.Context(), img, img, all.All())
	require.ErrorIs(t, err, late)
}

func TestNeeds(t *testing.T) {
	for _, c := range []struct {
		incompat uint32
		bits     uint8
		kernel   string
	}{{0, 12, "5.4"}, {0x4, 12, "5.15"}, {0xc, 12, "5.16"}, {0x8, 9, "6.4"}, {0x44, 12, "6.4"}} {
		_, kernel := needs(&erofs.Parsed{Incompat: c.incompat, BlockBits: c.bits})
		require.Equal(t, c.kernel, kernel)
	}
}

func TestBytes(t *testing.T) {
	require.Equal(t, "999 B", Bytes(999))
	require.Equal(t, "1.5 kB", Bytes(1500))
	require.Equal(t, "2.0 MB", Bytes(2_000_000))
	require.Equal(t, "3.25 GB", Bytes(3_250_000_000))
}

func TestRunShowsTheRootOfAHashTree(t *testing.T) {
	img, _, results := layersWith(t, differ.Config{Verity: true}, 40)
	got, err := Run(t.Context(), img, all.All())
	require.NoError(t, err)
	require.True(t, got.Lazy, got.Layers[0].Reason)
	require.Equal(t, results[0].Descriptor.Annotations[chunk.AnnotationVerityRoot], got.Layers[0].Verity)
	require.Equal(t, results[0].VeritySize, got.Layers[0].VeritySize)
	require.Equal(t, results[0].ImageSize, got.Layers[0].ImageSize)
	var out bytes.Buffer
	require.NoError(t, got.Print(&out))
	require.Contains(t, out.String(), "dm-verity root "+got.Layers[0].Verity)

	img.Manifest.Layers[0].Annotations[chunk.AnnotationVerityOffset] = "4096"
	img.Manifest.Layers[0].Annotations[chunk.LabelVerityOffset] = "4096"
	got, err = Run(t.Context(), img, all.All())
	require.NoError(t, err)
	require.Contains(t, got.Layers[0].Reason, "(size)", "the parser holds the place of the tree against the superblock")
}
