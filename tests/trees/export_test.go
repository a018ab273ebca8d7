package trees

import (
	"context"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// TestExportedImagesEqualTheirSource converts real images, exports them, and
// extracts the layers that come out beside the source's own.
func TestExportedImagesEqualTheirSource(t *testing.T) {
	testenv.RequireRoot(t)
	for _, recipe := range []func(context.Context) (testenv.Recipe, error){
		func(context.Context) (testenv.Recipe, error) { return testenv.Tiny() }, testenv.GoToolchain,
	} {
		r, err := recipe(t.Context())
		require.NoError(t, err)
		img, err := r.Build(t.Context(), func(s string) { t.Log(s) })
		require.NoError(t, err)
		dir := t.TempDir()
		lazy, back := filepath.Join(dir, "lazy"), filepath.Join(dir, "back")
		for _, args := range [][]string{
			{"convert", "-q", "--work-dir", filepath.Join(dir, "work"), "oci:" + img.Dir, "oci:" + lazy},
			{"verify", "-q", "oci:" + lazy},
			{"export", "-q", "--compression", "none", "--work-dir", filepath.Join(dir, "work"), "oci:" + lazy, "oci:" + back},
			{"verify", "-q", "oci:" + back},
		} {
			out, err := exec.CommandContext(t.Context(), testenv.MustTool(t, "lazyerofs"), args...).CombinedOutput()
			require.NoError(t, err, "%v: %s", args, out)
		}
		layers := layersOf(t, back)
		require.Len(t, layers, len(img.Layers))
		for i, l := range layers {
			want, got := filepath.Join(dir, "want"), filepath.Join(dir, "got")
			for tree, blob := range map[string]string{want: blobOf(img.Dir, img.Layers[i]), got: blobOf(back, l)} {
				require.NoError(t, os.Mkdir(tree, 0o755))
				extract(t, blob, tree)
				settleWhiteouts(t, tree)
			}
			diffs, err := Compare(want, got)
			require.NoError(t, err)
			require.Empty(t, diffs, "%s, layer %d", r.Name, i)
			require.NoError(t, os.RemoveAll(want))
			require.NoError(t, os.RemoveAll(got))
		}
	}
}

// settleWhiteouts gives all whiteouts one time: an unpacker gives them that of the
// extraction, since it means nothing.
func settleWhiteouts(t *testing.T, tree string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Type()&fs.ModeCharDevice == 0 {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil || st.Rdev != 0 {
			return err
		}
		return os.Chtimes(path, time.Unix(0, 0), time.Unix(0, 0))
	}))
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
