package trees

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// requireLayers exports the converted image, and compares what the exported tar of
// each layer extracts to with what the kernel shows of its EROFS form, and both with
// what the tar of the source extracts to. For large images the latter is left to
// requireStack.
func (i *converted) requireLayers(t *testing.T, done map[digest.Digest]bool) {
	back := filepath.Join(i.dir, "back")
	lazyerofs(t, "export", "-q", "--compression", "none", "--work-dir", i.work, "oci:"+i.lazy, "oci:"+back)
	layers := layersOf(t, back)
	require.Len(t, layers, len(i.img.Layers))
	if !i.large {
		lazyerofs(t, "verify", "-q", "oci:"+back)
	}
	for k, l := range layers {
		if done[i.img.Layers[k].Digest] {
			continue
		}
		done[i.img.Layers[k].Digest] = true
		got, want := filepath.Join(i.dir, "got"), filepath.Join(i.dir, "want")
		extract(t, blobOf(back, l), got)
		requireEqual(t, Compare, [2]string{i.lower[k], got})
		if !i.large {
			extract(t, blobOf(i.img.Dir, i.img.Layers[k]), want)
			requireEqual(t, Compare, [2]string{want, i.lower[k]}, [2]string{want, got})
			require.NoError(t, os.RemoveAll(want))
		}
		require.NoError(t, os.RemoveAll(got))
	}
	require.NoError(t, os.RemoveAll(back))
}

// requireEqual compares pairs of trees, all at once.
func requireEqual(t *testing.T, compare func(want, got string) ([]string, error), pairs ...[2]string) {
	t.Helper()
	found := make([][]string, len(pairs))
	g := errgroup.Group{}
	for n, p := range pairs {
		g.Go(func() (err error) {
			found[n], err = compare(p[0], p[1])
			return err
		})
	}
	require.NoError(t, g.Wait())
	for n, diffs := range found {
		require.Empty(t, diffs, "%v", pairs[n])
	}
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
