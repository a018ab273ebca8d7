package image

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// lay writes the files of an image below dir.
func lay(t *testing.T, i *Image, dir string) {
	t.Helper()
	for name, content := range i.Files {
		at := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(at), 0o755))
		require.NoError(t, os.WriteFile(at, content, 0o644))
	}
}

// Compare finds one wrong byte, and a file that is not there.
func TestCompare(t *testing.T) {
	i, err := New(1)
	require.NoError(t, err)
	dir := t.TempDir()
	lay(t, i, dir)
	require.NoError(t, i.Compare(dir))

	file := filepath.Join(dir, "usr/lib/big3")
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	b[len(b)/2] ^= 1
	require.NoError(t, os.WriteFile(file, b, 0o644))
	require.ErrorContains(t, i.Compare(dir), "usr/lib/big3 differs")
	require.NoError(t, os.Remove(file))
	require.ErrorIs(t, i.Compare(dir), os.ErrNotExist)
}

// The same seed is the same image, another has other layers.
func TestSeeds(t *testing.T) {
	a, err := New(1)
	require.NoError(t, err)
	b, err := New(1)
	require.NoError(t, err)
	c, err := New(2)
	require.NoError(t, err)
	require.Equal(t, a.layers, b.layers)
	for n := range a.Layers() {
		require.NotEqual(t, a.layers[n], c.layers[n])
	}
	require.NotContains(t, a.Files, "etc/deleted")
	require.NotContains(t, a.Files, "etc/.wh.deleted")
}

// What is served is there as tar and converted, with as many layers.
func TestServe(t *testing.T) {
	i, err := New(1)
	require.NoError(t, err)
	dir := t.TempDir()
	reg, err := i.Serve(t.Context(), dir)
	require.NoError(t, err)
	defer func() { require.NoError(t, reg.Close()) }()
	for _, tag := range []string{"tar", "lazy"} {
		_, err := os.Stat(filepath.Join(dir, "registry/docker/registry/v2/repositories/img/_manifests/tags", tag, "current/link"))
		require.NoError(t, err)
	}
}
