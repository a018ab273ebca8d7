package dmverity

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

func TestSidecar(t *testing.T) {
	path := filepath.Join(t.TempDir(), "layer.erofs")
	want, err := appendTo(path, randomImage(200))
	require.NoError(t, err)
	got, err := ReadSidecar(path)
	require.NoError(t, err)
	require.Nil(t, got)
	require.NoError(t, WriteSidecar(path, want))
	require.NoError(t, WriteSidecar(path, want), "a second time")
	got, err = ReadSidecar(path)
	require.NoError(t, err)
	require.Equal(t, &want, got)
	names, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	require.Len(t, names, 2)

	// As containerd 2.4.2 writes it.
	text := "{\n  \"roothash\": \"" + want.Hex() + "\",\n  \"hashoffset\": 819200\n}"
	require.NoError(t, os.WriteFile(path+SidecarSuffix, []byte(text), 0o600))
	got, err = ReadSidecar(path)
	require.NoError(t, err)
	require.Equal(t, &want, got)

	require.NoError(t, os.Remove(path))
	_, err = ReadSidecar(path)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.Error(t, WriteSidecar(filepath.Join(path, "none"), want))
}

func FuzzSidecar(f *testing.F) {
	f.Add([]byte(`{"roothash":"00","hashoffset":4096}`), int64(8192))
	f.Add([]byte(`{}`), int64(0))
	f.Add([]byte(`{"roothash":"`+chunk.Verity{Root: "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}.Hex()+`","hashoffset":4096}`), int64(8192))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		v, err := parseSidecar(b, size)
		if err == nil {
			require.Positive(t, v.HashOffset)
			require.Less(t, v.HashOffset, size)
		}
	})
}
