package erofs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestNamesOfSuperblocks(t *testing.T) {
	for name, ok := range map[string]bool{
		"erofs-7": true, "0:29": true, "254:1": true,
		"": false, "erofs-": false, "erofs-x": false, "features": false, ":": false, "0:": false, "0:1:2": false, "..": false, "0:/x": false,
	} {
		require.Equal(t, ok, isSuperblockName(name), name)
	}
	require.False(t, SuperblockAlive("0:4294967295"))
}

// The way of kernels that call superblocks by number works on this one too.
func TestReadAheadByList(t *testing.T) {
	image := mkfs(t, sample(t))
	mount, name, err := detachedReadAhead(t.Context(), MountConfig{Source: image, ReadAheadKB: 512})
	require.NoError(t, err)
	defer mount.Close()
	require.True(t, SuperblockAlive(name))
	set, err := filepath.Glob("/sys/class/bdi/erofs-*/read_ahead_kb")
	require.NoError(t, err)
	found := false
	for _, f := range set {
		kb, err := os.ReadFile(f)
		found = found || err == nil && string(kb) == "512\n"
	}
	require.True(t, found)
	_, _, err = detachedReadAhead(t.Context(), MountConfig{Source: image + ".none", ReadAheadKB: 512})
	require.ErrorIs(t, err, os.ErrNotExist)
}
