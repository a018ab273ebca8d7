package differ

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

func TestApplyNative(t *testing.T) {
	src := layerTar(t)
	store := newLayerStore(t)
	for _, form := range []Form{Zstd, Raw} {
		for _, draft := range []bool{false, true} {
			res, blob := convertBytes(t, src, Config{Form: form})
			desc := store.add(t, res.Descriptor.MediaType, blob)
			desc.Annotations = res.Descriptor.Annotations
			if draft {
				desc.MediaType = map[Form]string{Zstd: chunk.MediaTypeDraftLayerZstd, Raw: chunk.MediaTypeDraftLayer}[form]
			}
			dir, mounts := snapshotDir(t, t.TempDir())
			got, err := New(store, ServiceConfig{}).Apply(t.Context(), desc, mounts)
			require.NoError(t, err)
			require.Equal(t, res.DiffID, got.Digest)
			img, err := os.ReadFile(filepath.Join(dir, LayerFile))
			require.NoError(t, err)
			require.True(t, bytes.Equal(imageOf(t, blob, res), img), "the image without its index")
			requireOnly(t, dir, LayerFile)
		}
	}
}

// TestApplyNativeCalledTar: clients that commit without asking for a media type
// call every layer tar+gzip.
func TestApplyNativeCalledTar(t *testing.T) {
	src := layerTar(t)
	store := newLayerStore(t)
	for _, form := range []Form{Zstd, Raw} {
		res, blob := convertBytes(t, src, Config{Form: form})
		for _, mediaType := range []string{ocispec.MediaTypeImageLayerGzip, images.MediaTypeDockerSchema2LayerGzip} {
			dir, mounts := snapshotDir(t, t.TempDir())
			got, err := New(store, ServiceConfig{}).Apply(t.Context(), store.add(t, mediaType, blob), mounts)
			require.NoError(t, err)
			require.Equal(t, res.DiffID, got.Digest)
			img, err := os.ReadFile(filepath.Join(dir, LayerFile))
			require.NoError(t, err)
			require.True(t, bytes.Equal(imageOf(t, blob, res), img))
		}
	}
}

// TestApplyNativeWithoutIndex: what other tools make has none.
func TestApplyNativeWithoutIndex(t *testing.T) {
	store := newLayerStore(t)
	res, blob := convertBytes(t, layerTar(t), Config{})
	img := imageOf(t, blob, res)
	for mediaType, b := range map[string][]byte{
		chunk.MediaTypeLayer: img, chunk.MediaTypeDraftLayer: img,
		chunk.MediaTypeLayerZstd: zstded(t, img), chunk.MediaTypeDraftLayerZstd: zstded(t, img),
	} {
		dir, mounts := snapshotDir(t, t.TempDir())
		got, err := New(store, ServiceConfig{}).Apply(t.Context(), store.add(t, mediaType, b), mounts)
		require.NoError(t, err, mediaType)
		require.Equal(t, digest.FromBytes(img), got.Digest)
		have, err := os.ReadFile(filepath.Join(dir, LayerFile))
		require.NoError(t, err)
		require.True(t, bytes.Equal(img, have), mediaType)
	}
}

func TestApplyNativeRefused(t *testing.T) {
	res, blob := convertBytes(t, layerTar(t), Config{})
	img := imageOf(t, blob, res)
	with := func(at int, b byte) []byte {
		bad := bytes.Clone(img)
		bad[at] ^= b
		return bad
	}
	bomb := append(bytes.Clone(img[:res.ImageSize]), make([]byte, 64<<20)...)
	requireRefused(t, map[string]refusedLayer{
		"not an image":    {chunk.MediaTypeLayer, []byte(text(1, 100000)), "not an EROFS image"},
		"nothing":         {chunk.MediaTypeLayer, []byte("x"), "shorter than an EROFS superblock"},
		"cut off":         {chunk.MediaTypeLayer, img[:len(img)-4096], "only"},
		"unknown feature": {chunk.MediaTypeLayer, with(superOff+80, 0x40), "layer is refused"},
		"broken inode":    {chunk.MediaTypeLayerZstd, zstded(t, with(int(superOff)+128, 0xff)), "layer is refused"},
		"not zstd":        {chunk.MediaTypeLayerZstd, img, "decompressing"},
		"cut off zstd":    {chunk.MediaTypeLayerZstd, blob[:res.Descriptor.Size/2], "truncated"},
		"bomb":            {chunk.MediaTypeLayerZstd, zstded(t, bomb), "decompressing: layer is refused: far more comes"},
	})
	store := newLayerStore(t)
	t.Run("annotation", func(t *testing.T) {
		desc := store.add(t, chunk.MediaTypeLayerZstd, blob)
		desc.Annotations = map[string]string{chunk.AnnotationUncompressedDigest: digest.FromString("other").String()}
		dir, mounts := snapshotDir(t, t.TempDir())
		_, err := New(store, ServiceConfig{}).Apply(t.Context(), desc, mounts)
		require.ErrorContains(t, err, "its annotation says")
		requireOnly(t, dir)
	})
	t.Run("other bytes than the digest", func(t *testing.T) {
		dir, mounts := snapshotDir(t, t.TempDir())
		desc := ocispec.Descriptor{MediaType: chunk.MediaTypeLayer, Digest: digest.FromString("other"), Size: int64(len(img))}
		_, err := New(lying{b: img}, ServiceConfig{}).Apply(t.Context(), desc, mounts)
		require.ErrorContains(t, err, "do not have its digest")
		require.True(t, errdefs.IsInvalidArgument(err))
		requireOnly(t, dir)
	})
}

// lying is a content store that gives the same bytes for every digest.
type lying struct {
	content.Store // nil: only reads are answered
	b             []byte
}

type lyingReader struct{ *bytes.Reader }

func (lyingReader) Close() error { return nil }

func (l lying) ReaderAt(context.Context, ocispec.Descriptor) (content.ReaderAt, error) {
	return lyingReader{bytes.NewReader(l.b)}, nil
}
