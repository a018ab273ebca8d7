package inspect

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"math/rand"
	"slices"
	"testing"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/fs/format/all"
)

// version converts a layer of files that are large enough to have chunks of
// their own, each made of its seed.
func version(t *testing.T, ref string, seeds ...int64) *Subject {
	t.Helper()
	var tarball, blob bytes.Buffer
	w := tar.NewWriter(&tarball)
	for _, seed := range seeds {
		body := make([]byte, 1<<20)
		rand.New(rand.NewSource(seed)).Read(body)
		require.NoError(t, w.WriteHeader(&tar.Header{Name: string(rune('a' + seed)), Mode: 0o644, Size: int64(len(body))}))
		_, err := w.Write(body)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	r, err := differ.Convert(t.Context(), &tarball, &blob, differ.Config{SpoolDir: t.TempDir()})
	require.NoError(t, err)
	img := &Subject{Ref: ref, Open: opener(t, map[string][]byte{r.Descriptor.Digest.String(): blob.Bytes()})}
	img.Desc.Digest = digest.FromString(ref)
	img.Manifest.Layers = []ocispec.Descriptor{r.Descriptor}
	return img
}

// TestCompareFindsSharedFiles has two versions that share two of three files,
// whose chunks do not move against their start when another file comes before.
func TestCompareFindsSharedFiles(t *testing.T) {
	a := version(t, "app:1", 1, 2, 3)
	b := version(t, "app:2", 0, 2, 3)
	d, err := Compare(t.Context(), a, b, all.All())
	require.NoError(t, err)
	require.Empty(t, d.SharedLayers)
	require.Equal(t, 8, d.SharedChunks, "two files of 1 MiB in chunks of 256 KiB")
	require.InDelta(t, 2<<20, d.SharedBytes, 4096)
	for _, s := range []Side{d.A, d.B} {
		require.Equal(t, 13, s.Chunks, "three files and the metadata")
		require.Equal(t, s.Chunks, s.Distinct)
		require.Equal(t, s.Bytes, s.DistinctBytes)
		require.Equal(t, 8, s.Layers[0].SharedChunks)
		require.Equal(t, d.SharedBytes, s.Layers[0].SharedBytes)
	}
	var out bytes.Buffer
	require.NoError(t, d.Print(&out))
	require.Contains(t, out.String(), "A: app:1\n")
	require.Regexp(t, `shared: 0 layers, 8 distinct chunks, 2\.1 MB, 6[0-9]\.[0-9] % of B; B needs 1\.\d MB beside A`, out.String())
	raw, err := json.Marshal(d)
	require.NoError(t, err)
	require.Contains(t, string(raw), `"sharedLayers":[]`)
}

func TestCompareCountsRepetitionsOnce(t *testing.T) {
	a := version(t, "app:1", 1, 2)
	a.Manifest.Layers = append(a.Manifest.Layers, a.Manifest.Layers[0])
	d, err := Compare(t.Context(), a, a, all.All())
	require.NoError(t, err)
	require.Len(t, d.SharedLayers, 1)
	require.Equal(t, 2*d.A.Distinct, d.A.Chunks)
	require.Equal(t, d.A.Distinct, d.SharedChunks)
	require.Equal(t, d.A.DistinctBytes, d.SharedBytes)
	for _, l := range d.B.Layers {
		require.Equal(t, l.Chunks, l.SharedChunks)
		require.Equal(t, l.Bytes, l.SharedBytes)
	}
}

func TestCompareSaysWhatIsNotKnown(t *testing.T) {
	a := version(t, "app:1", 1)
	b := *a
	b.Manifest.Layers = slices.Clone(a.Manifest.Layers)
	b.Manifest.Layers[0].MediaType = ocispec.MediaTypeImageLayerGzip
	d, err := Compare(t.Context(), a, &b, all.All())
	require.NoError(t, err)
	require.Contains(t, d.B.Layers[0].Reason, "convert the image")
	require.Zero(t, d.SharedChunks)
	b.Manifest.Layers[0] = a.Manifest.Layers[0]
	b.Manifest.Layers[0].Annotations = nil
	d, err = Compare(t.Context(), a, &b, all.All())
	require.NoError(t, err)
	require.NotEmpty(t, d.B.Layers[0].Reason)
	var out bytes.Buffer
	require.NoError(t, d.Print(&out))
	require.Contains(t, out.String(), "not known: ")

	down := errors.New("connection refused")
	b.Open = refuse(down)
	b.Manifest.Layers = a.Manifest.Layers
	_, err = Compare(t.Context(), a, &b, all.All())
	require.ErrorIs(t, err, down)
}
