package erofsraw

import (
	"bytes"
	"math/rand/v2"
	"testing"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/format"
	"github.com/lazyerofs/lazyerofs/fs/format/formattest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func noise(n int) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{2}).Read(p)
	return p
}

func TestLaws(t *testing.T) {
	for name, size := range map[string]int{"one chunk": 4096, "many": 100 * 4096, "unaligned end": 7*4096 + 512} {
		t.Run(name, func(t *testing.T) {
			image := noise(size)
			blob, desc, err := formattest.BuildRaw(image, 16<<10)
			require.NoError(t, err)
			formattest.Run(t, formattest.Layer{Format: New(), Blob: blob, Desc: desc, Image: image})
			desc.MediaType = chunk.MediaTypeDraftLayer
			formattest.Run(t, formattest.Layer{Format: New(), Blob: blob, Desc: desc, Image: image})
		})
	}
}

func TestMatch(t *testing.T) {
	for _, m := range []string{"", chunk.MediaTypeLayerZstd, chunk.MediaTypeDraftLayerZstd, ocispec.MediaTypeImageLayer} {
		require.False(t, New().Match(ocispec.Descriptor{MediaType: m}), m)
	}
	require.Equal(t, "erofsraw", New().Name())
}

func TestNotLazyWithoutIndex(t *testing.T) {
	_, err := New().Open(t.Context(), formattest.NewBlob(noise(4096)), ocispec.Descriptor{MediaType: chunk.MediaTypeLayer})
	require.ErrorIs(t, err, format.ErrNotLazy)
}

// TestPlacement: the image starts the blob and the index ends it.
func TestPlacement(t *testing.T) {
	image := noise(8192)
	sum := make([]byte, 32)
	index := func(first int64) []byte {
		b := chunk.NewIndexBuilder(chunk.CodecNone, 32)
		require.NoError(t, b.Add(first, 0, sum))
		return b.Bytes(8192)
	}
	open := func(blob []byte, at string, idx []byte) error {
		_, err := New().Open(t.Context(), formattest.NewBlob(blob), ocispec.Descriptor{
			MediaType: chunk.MediaTypeLayer,
			Annotations: map[string]string{
				chunk.AnnotationIndexRange:  at,
				chunk.AnnotationIndexDigest: digest.FromBytes(idx).String(),
			},
		})
		return err
	}
	good, shifted := index(0), index(4096)
	require.NoError(t, open(append(bytes.Clone(image), good...), "8192:8272", good))
	require.ErrorContains(t, open(append(append(bytes.Clone(image), good...), 0), "8192:8272", good), "ends at 8272")
	late := append(append(make([]byte, 4096), image...), shifted...)
	require.ErrorContains(t, open(late, "12288:12368", shifted), "begins at blob offset 4096")
}

// TestTypedErrors: a wrong digest and a compressed index are corruption.
func TestTypedErrors(t *testing.T) {
	blob, desc, err := formattest.BuildRaw(noise(8192), 4096)
	require.NoError(t, err)
	var ce *chunk.CorruptError
	bad := bytes.Clone(blob)
	bad[len(bad)-1]++
	_, err = New().Open(t.Context(), formattest.NewBlob(bad), desc)
	require.ErrorAs(t, err, &ce)
	require.Contains(t, ce.Reason, "digest")
}
