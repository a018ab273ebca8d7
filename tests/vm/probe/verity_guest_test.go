//go:build guest

package probe

import (
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// seal makes a file immutable under a hash tree of SHA-256 over blocks of 4 KiB.
func seal(t *testing.T, name string) error {
	t.Helper()
	f, err := os.Open(name) // no writer may have it open
	require.NoError(t, err)
	defer f.Close()
	arg := unix.FsverityEnableArg{Version: 1, Hash_algorithm: unix.FS_VERITY_HASH_ALG_SHA256, Block_size: 4096}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.FS_IOC_ENABLE_VERITY, uintptr(unsafe.Pointer(&arg)))
	if errno != 0 {
		return errno
	}
	return nil
}

// Where a guest is to have fs-verity a file is sealed for good, and dm-verity is
// there to be asked; elsewhere fs-verity says that it is not there.
func TestVerity(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	require.NoError(t, os.WriteFile(name, make([]byte, 100_000), 0o600))
	err := seal(t, name)
	if os.Getenv(VerityEnv) == "" {
		require.ErrorIs(t, err, unix.EOPNOTSUPP)
		return
	}
	require.NoError(t, err)
	_, err = os.OpenFile(name, os.O_RDWR, 0)
	require.ErrorIs(t, err, unix.EPERM)
	b, err := os.ReadFile(name)
	require.NoError(t, err)
	require.Len(t, b, 100_000)
	require.DirExists(t, "/sys/module/dm_verity")
	control, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	require.NoError(t, err)
	require.NoError(t, control.Close())
}
