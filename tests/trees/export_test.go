package trees

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

// requireLayers exports the converted image, and compares what the tar of each layer
// extracts to with what the kernel shows of its EROFS form, and with what the
// exported tar extracts to.
func (i *converted) requireLayers(t *testing.T, done map[digest.Digest]bool) {
	back := filepath.Join(i.dir, "back")
	lazyerofs(t, "export", "-q", "--compression", "none", "--work-dir", i.work, "oci:"+i.lazy, "oci:"+back)
	lazyerofs(t, "verify", "-q", "oci:"+back)
	layers := layersOf(t, back)
	require.Len(t, layers, len(i.img.Layers))
	for k, l := range layers {
		if done[i.img.Layers[k].Digest] {
			continue
		}
		done[i.img.Layers[k].Digest] = true
		want, got := filepath.Join(i.dir, "want"), filepath.Join(i.dir, "got")
		for tree, blob := range map[string]string{want: blobOf(i.img.Dir, i.img.Layers[k]), got: blobOf(back, l)} {
			require.NoError(t, os.Mkdir(tree, 0o755))
			extract(t, blob, tree)
		}
		for what, tree := range map[string]string{"mounted": i.lower[k], "exported": got} {
			diffs, err := Compare(want, tree)
			require.NoError(t, err)
			require.Empty(t, diffs, "layer %d, %s", k, what)
		}
		require.NoError(t, os.RemoveAll(want))
		require.NoError(t, os.RemoveAll(got))
	}
	require.NoError(t, os.RemoveAll(back))
}

func blobOf(dir string, d ocispec.Descriptor) string {
	return filepath.Join(dir, "blobs", d.Digest.Algorithm().String(), d.Digest.Encoded())
}

// layersOf reads the layers of the one image of a layout.
func layersOf(t *testing.T, dir string) []ocispec.Descriptor {
	t.Helper()
	var idx ocispec.Index
	read := func(file string, v any) {
		b, err := os.ReadFile(file)
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(b, v))
	}
	read(filepath.Join(dir, "index.json"), &idx)
	require.Len(t, idx.Manifests, 1)
	var m ocispec.Manifest
	read(blobOf(dir, idx.Manifests[0]), &m)
	require.NoError(t, m.Config.Digest.Validate())
	for _, l := range m.Layers {
		require.Equal(t, digest.SHA256, l.Digest.Algorithm())
	}
	return m.Layers
}
