package differ

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// kernelXattr is what a file has after containerd's unpacking: the attribute is
// set, then the mode. ok is false where the kernel refuses and the unpacking fails.
func kernelXattr(t *testing.T, name string, value []byte, mode uint16) (got []byte, ok bool) {
	t.Helper()
	p := filepath.Join(t.TempDir(), "f")
	if mode&unix.S_IFMT == unix.S_IFDIR {
		require.NoError(t, os.Mkdir(p, 0o755))
	} else {
		require.NoError(t, os.WriteFile(p, nil, 0o644))
	}
	err := unix.Setxattr(p, name, value, 0)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return nil, false
	}
	if name == capability { // which the kernel rewrites when it is read
		return nil, true
	}
	require.NoError(t, unix.Chmod(p, uint32(mode)&0o7777))
	buf := make([]byte, 64<<10)
	n, err := unix.Getxattr(p, name, buf)
	if errors.Is(err, unix.ENODATA) {
		return nil, true
	}
	require.NoError(t, err)
	return buf[:n], true
}

// FuzzXattr holds our rules for access control lists and capabilities against the
// kernel's own.
func FuzzXattr(f *testing.F) {
	for _, v := range []string{"", acl, acl[:4], acl[:9], "\x01" + acl[1:], acl[:4] + acl[12:20] + acl[4:12] + acl[20:],
		string(posixACL(6, 7, 4)), string(posixACLMask(7, 0, 7, 0)), acl[:12] + acl[12:20] + "\x10\x00\x07\x00\xff\xff\xff\xff" + acl[20:],
		acl[:6] + "\xff" + acl[7:], "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"} {
		for kind := range uint8(4) {
			f.Add([]byte(v), uint16(0o640), kind)
		}
	}
	f.Fuzz(func(t *testing.T, value []byte, perm uint16, kind uint8) {
		if len(value) > 4000 {
			return // ext4 holds no more
		}
		name, mode := aclAccess, unix.S_IFREG|perm&0o777
		switch kind % 4 {
		case 1:
			mode = unix.S_IFDIR | perm&0o777
		case 2:
			name, mode = aclDefault, unix.S_IFDIR|perm&0o777
		case 3:
			name = capability
		}
		want, ok := kernelXattr(t, name, value, mode)
		got := value
		if name != capability {
			got = effectiveACL(name, value, mode)
		}
		if name == capability && len(value) == 0 {
			return // the kernel keeps an empty one on a file that no program can be
		}
		refused := got != nil && checkXattr(name, got, mode) != ""
		require.Equal(t, !ok, refused, "kernel %x", want)
		if ok && name != capability {
			require.True(t, bytes.Equal(want, got), "kernel %x, we %x", want, got)
		}
	})
}
