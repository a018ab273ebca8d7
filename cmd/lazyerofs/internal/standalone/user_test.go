package standalone

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestUserFollowsTheBaseDirectories(t *testing.T) {
	t.Setenv("XDG_DATA_HOME", "/data")
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/7")
	i, err := User()
	require.NoError(t, err)
	require.Equal(t, Instance{Root: "/data/lazyerofs", Address: "/run/user/7/lazyerofs/lazyerofs.sock", Rootless: true}, i)

	t.Setenv("XDG_DATA_HOME", "relative") // to be ignored
	t.Setenv("HOME", "/home/u")
	i, err = User()
	require.NoError(t, err)
	require.Equal(t, "/home/u/.local/share/lazyerofs", i.Root)
	t.Setenv("HOME", "")
	_, err = User()
	require.ErrorContains(t, err, "--root")
}

func TestTheSocketIsTheUsersOwn(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", "")
	t.Setenv("TMPDIR", tmp)
	dir := filepath.Join(tmp, fmt.Sprintf("lazyerofs-%d", os.Geteuid()))
	for range 2 {
		i, err := User()
		require.NoError(t, err)
		require.Equal(t, filepath.Join(dir, "lazyerofs.sock"), i.Address)
	}
	require.NoError(t, os.Chmod(dir, 0o750))
	_, err := User()
	require.ErrorContains(t, err, "alone")
	require.NoError(t, os.Remove(dir))
	require.NoError(t, os.Symlink(tmp, dir))
	_, err = User()
	require.ErrorContains(t, err, "alone")
}
