package testenv

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestDiskUsageCountsBlocksOnce(t *testing.T) {
	RequireRoot(t)
	dir := t.TempDir()
	before, err := DiskUsage(dir)
	require.NoError(t, err)
	file := filepath.Join(dir, "sub", "file")
	require.NoError(t, os.Mkdir(filepath.Dir(file), 0o755))
	require.NoError(t, os.WriteFile(file, make([]byte, 1<<20), 0o600))
	require.NoError(t, os.Link(file, filepath.Join(dir, "again")))
	require.NoError(t, os.Truncate(file, 1<<40)) // a hole
	mnt := filepath.Join(dir, "mnt")
	require.NoError(t, os.Mkdir(mnt, 0o755))
	require.NoError(t, unix.Mount("tmpfs", mnt, "tmpfs", 0, ""))
	defer func() { require.NoError(t, unix.Unmount(mnt, 0)) }()
	require.NoError(t, os.WriteFile(filepath.Join(mnt, "elsewhere"), make([]byte, 4<<20), 0o600))
	after, err := DiskUsage(dir)
	require.NoError(t, err)
	require.GreaterOrEqual(t, after-before, int64(1<<20))
	require.Less(t, after-before, int64(1<<20+64<<10))
	_, err = DiskUsage(filepath.Join(dir, "none"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestCPUOfCountsChildren(t *testing.T) {
	before, err := CPUOf(os.Getpid())
	require.NoError(t, err)
	cmd := exec.Command("sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done")
	require.NoError(t, cmd.Run())
	after, err := CPUOf(os.Getpid())
	require.NoError(t, err)
	own := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	require.GreaterOrEqual(t, after-before, own-2*clockTick)
	_, err = CPUOf(1 << 30)
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestCPUTimesReadsTheFourOfThem(t *testing.T) {
	got, err := cpuTimes("7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 100 20 3 4 20 0 1")
	require.NoError(t, err)
	require.Equal(t, 1270*time.Millisecond, got)
	for _, bad := range []string{"", "7 (a) S 1 2", "7 (a) S 1 2 3 4 5 6 7 8 9 10 x 20 3 4"} {
		_, err := cpuTimes(bad)
		require.Error(t, err, bad)
	}
}
