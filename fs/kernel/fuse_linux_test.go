package kernel

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestProbeImage(t *testing.T) {
	image, name, content := ProbeImage()
	require.NotEmpty(t, name)
	require.Zero(t, len(image)%4096, "a loop device would cut the rest off")
	require.Equal(t, content, image[len(image)-len(content):])
}

func TestEROFSRefusal(t *testing.T) {
	require.NoError(t, EROFSRefusal(nil))
	for _, no := range []unix.Errno{unix.ENODEV, unix.ENOTBLK, unix.ENOENT, unix.EINVAL, unix.EOPNOTSUPP, unix.EPERM, unix.ENOSYS} {
		err := EROFSRefusal(fmt.Errorf("mounting: %w", no))
		require.ErrorIs(t, err, ErrNotSupported, "%v", no)
		require.ErrorIs(t, err, no)
	}
	for _, inconclusive := range []error{unix.EMFILE, unix.ENOSPC, errors.New("x")} {
		err := EROFSRefusal(inconclusive)
		require.ErrorIs(t, err, inconclusive)
		require.NotErrorIs(t, err, ErrNotSupported)
	}
	said := fmt.Errorf("wrong bytes: %w", ErrNotSupported)
	require.Equal(t, said, EROFSRefusal(said))
}
