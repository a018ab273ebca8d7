package kernel

import (
	"encoding/binary"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// EROFS of this kernel asks no cache for anything, whatever the option says.
func TestErofsThatNeverAsks(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fds[1])
	device := os.NewFile(uintptr(fds[0]), "device")
	defer device.Close()
	err = erofsAsks(device, mountByID)
	require.ErrorIs(t, err, ErrNotSupported)
	require.ErrorContains(t, err, "CONFIG_EROFS_FS_ONDEMAND")
}

func TestRefuseOpens(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	object, err := unix.Open("/dev/null", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	ne := binary.NativeEndian
	var open []byte
	for _, v := range []uint32{7, 0, 34, 3, 1, 1, uint32(object), 0} {
		open = ne.AppendUint32(open, v)
	}
	for _, m := range [][]byte{append(open, 0, 'x'), {1, 2, 3}} { // the other is no message
		_, err = unix.Write(fds[1], m)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	asked, err := refuseOpens(fds[0], int(r.Fd()))
	require.NoError(t, err)
	require.True(t, asked)
	_, err = unix.FcntlInt(uintptr(object), unix.F_GETFD, 0)
	require.ErrorIs(t, err, unix.EBADF, "the object's descriptor is still open")
	b := make([]byte, 64)
	n, err := unix.Read(fds[1], b)
	require.NoError(t, err)
	require.Equal(t, "copen 7,-2", string(b[:n]))
}
