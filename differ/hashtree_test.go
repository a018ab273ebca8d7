package differ

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/dmverity"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// requireTree holds image data against the tree in it and returns the image.
func requireTree(t *testing.T, data []byte, v *chunk.Verity) []byte {
	t.Helper()
	require.NotNil(t, v)
	c, err := dmverity.NewChecker(t.TempDir(), bytes.NewReader(data), *v)
	require.NoError(t, err)
	_, err = c.Write(data)
	require.NoError(t, err)
	require.NoError(t, c.Finish())
	require.NoError(t, c.Close())
	return data[:v.HashOffset]
}

// dataOf is the image data of a blob, hash tree included.
func dataOf(t *testing.T, blob []byte, res Result) []byte {
	if res.Descriptor.MediaType == chunk.MediaTypeLayer {
		return blob[:index(t, res, blob).Size()]
	}
	return imageOf(t, blob, res)
}

// TestHashTree: the tree follows the image, has chunks of its own, is named by the
// annotations, and changes nothing of what precedes it.
func TestHashTree(t *testing.T) {
	src := layerTar(t)
	for _, form := range []Form{Zstd, Raw} {
		t.Run(form.String(), func(t *testing.T) {
			plain, plainBlob := convertBytes(t, src, Config{Form: form})
			res, blob := convertBytes(t, src, Config{Form: form, Verity: true, Workers: 3})
			again, againBlob := convertBytes(t, src, Config{Form: form, Verity: true, Workers: 1})
			require.Equal(t, res.Descriptor, again.Descriptor)
			require.True(t, bytes.Equal(blob, againBlob), "not reproducible")

			data := dataOf(t, blob, res)
			v, err := chunk.ParseVerity(res.Descriptor.Annotations, int64(len(data)))
			require.NoError(t, err)
			image := requireTree(t, data, v)
			require.True(t, bytes.Equal(imageOf(t, plainBlob, plain), image), "the image is another one")
			require.Equal(t, plain.ImageSize, res.ImageSize)
			require.EqualValues(t, len(data)-len(image), res.VeritySize)
			_, err = erofs.Parse(bytes.NewReader(image), erofs.DefaultPolicy(v.HashOffset))
			require.NoError(t, err)

			x, y := index(t, plain, plainBlob), index(t, res, blob)
			require.EqualValues(t, len(data), y.Size(), "the draft counts the tree as image data")
			for i := range x.Len() {
				require.Equal(t, x.At(i), y.At(i), "chunk %d", i)
			}
			require.Equal(t, v.HashOffset, y.At(x.Len()).Data.Off, "the tree begins a chunk")
			require.NotEqual(t, plain.DiffID, res.DiffID)
			checkChunks(t, res, blob, data)
			require.NotContains(t, plain.Descriptor.Annotations, chunk.AnnotationVerityRoot)
			require.Zero(t, plain.VeritySize)
		})
	}
}

func TestHashTreeOfTheSmallestLayer(t *testing.T) {
	res, blob := convertBytes(t, mkTar(t), Config{Verity: true, ChunkSize: 4096})
	data := dataOf(t, blob, res)
	v, err := chunk.ParseVerity(res.Descriptor.Annotations, int64(len(data)))
	require.NoError(t, err)
	requireTree(t, data, v)
}

// TestApplyFailsWithHashTree: nothing is left of a layer that could not get its name.
func TestApplyFailsWithHashTree(t *testing.T) {
	store := newLayerStore(t)
	desc := store.add(t, ocispec.MediaTypeImageLayer, mkTar(t, file("a", "1")))
	for _, verity := range []bool{false, true} {
		dir, mounts := snapshotDir(t, t.TempDir())
		require.NoError(t, os.Mkdir(filepath.Join(dir, LayerFile), 0o755)) // whose place no file can take
		_, err := New(store, ServiceConfig{Layer: Config{Verity: verity}}).Apply(t.Context(), desc, mounts)
		require.ErrorContains(t, err, "publishing layer file")
		requireOnly(t, dir, LayerFile)
	}
}

// TestApplyAgainWithoutHashTree: what was said of an earlier layer in the same place
// is not said of the one that takes it.
func TestApplyAgainWithoutHashTree(t *testing.T) {
	store := newLayerStore(t)
	dir, mounts := snapshotDir(t, t.TempDir())
	for i, verity := range []bool{true, false, true} {
		desc := store.add(t, ocispec.MediaTypeImageLayer, mkTar(t, file("a", random(uint64(i), 100000*(i+1)))))
		_, err := New(store, ServiceConfig{Layer: Config{Verity: verity}}).Apply(t.Context(), desc, mounts)
		require.NoError(t, err)
		v, err := dmverity.ReadSidecar(filepath.Join(dir, LayerFile))
		require.NoError(t, err)
		require.Equal(t, verity, v != nil)
	}
	// One that is refused changes nothing of the layer that is there.
	_, err := New(store, ServiceConfig{}).Apply(t.Context(), store.add(t, ocispec.MediaTypeImageLayer, mkTar(t, file("../x", ""))), mounts)
	require.ErrorContains(t, err, "outside the layer")
	requireOnly(t, dir, LayerFile, LayerFile+dmverity.SidecarSuffix)
}

// TestApplyWithHashTree: every kind of layer gets one on this node, also one that
// came with a tree, and the image before it is the same.
func TestApplyWithHashTree(t *testing.T) {
	src := layerTar(t)
	store := newLayerStore(t)
	res, blob := convertBytes(t, src, Config{Verity: true})
	raw, rawBlob := convertBytes(t, src, Config{Form: Raw, Verity: true})
	native := store.add(t, res.Descriptor.MediaType, blob)
	native.Annotations = res.Descriptor.Annotations
	for name, desc := range map[string]ocispec.Descriptor{
		"tar": store.add(t, ocispec.MediaTypeImageLayer, src), "zstd": native,
		"raw": store.add(t, raw.Descriptor.MediaType, rawBlob),
	} {
		dir, mounts := snapshotDir(t, t.TempDir())
		plain, err := New(store, ServiceConfig{}).Apply(t.Context(), desc, mounts)
		require.NoError(t, err, name)
		image, err := os.ReadFile(filepath.Join(dir, LayerFile))
		require.NoError(t, err)
		requireOnly(t, dir, LayerFile)

		dir, mounts = snapshotDir(t, t.TempDir())
		got, err := New(store, ServiceConfig{Layer: Config{Verity: true}}).Apply(t.Context(), desc, mounts)
		require.NoError(t, err, name)
		require.Equal(t, plain, got, "the diff id is that of the layer, not of what is made of it here")
		requireOnly(t, dir, LayerFile, LayerFile+dmverity.SidecarSuffix)
		data, err := os.ReadFile(filepath.Join(dir, LayerFile))
		require.NoError(t, err)
		v, err := dmverity.ReadSidecar(filepath.Join(dir, LayerFile))
		require.NoError(t, err)
		require.True(t, bytes.Equal(image, requireTree(t, data, v)), name)
		if name != "tar" {
			require.Equal(t, res.Descriptor.Annotations[chunk.AnnotationVerityRoot], v.Root.String(), "the root of the image's author")
		}
	}
}
