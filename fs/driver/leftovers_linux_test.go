package driver

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestRemoveLeftovers(t *testing.T) {
	cache, tmp := t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", tmp)
	dead := exec.Command("true")
	require.NoError(t, dead.Run())
	mine, err := ProbeTarget()
	require.NoError(t, err)

	old := filepath.Join(cache, ".probe-fuseblock-1")
	fresh := filepath.Join(cache, ".probe-erofs-2")
	layers := filepath.Join(cache, "layers")
	theirs := filepath.Join(tmp, fmt.Sprintf("%s%d-3", probeDir, dead.Process.Pid))
	for _, dir := range []string{filepath.Join(old, "mount"), fresh, layers, theirs} {
		require.NoError(t, os.MkdirAll(dir, 0o700))
	}
	for _, at := range []string{filepath.Join(old, "mount"), theirs} {
		require.NoError(t, unix.Mount("none", at, "tmpfs", 0, ""))
		t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	}
	for _, dir := range []string{old, layers} {
		require.NoError(t, os.Chtimes(dir, time.Time{}, time.Now().Add(-time.Hour)))
	}
	require.NoError(t, RemoveLeftovers(t.Context(), cache))
	for dir, stays := range map[string]bool{mine: true, old: false, fresh: true, layers: true, theirs: false} {
		_, err := os.Lstat(dir)
		require.Equal(t, stays, err == nil, dir)
	}
	for _, dir := range []string{cache, tmp} {
		mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
		require.NoError(t, err)
		require.Empty(t, mounts)
	}
	require.NoError(t, RemoveLeftovers(t.Context(), "/no/such/directory"))
}
