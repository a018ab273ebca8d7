package fusesession

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/kernel"
)

const capHasResend = fuse.CAP_HAS_RESEND

// connections is where distributions mount fusectl.
const connections = "/sys/fs/fuse/connections"

// Abort ends the connection at once: whoever waits for an answer gets an error
// (ENOTCONN or ECONNABORTED), however it waits, and so does everyone later. The
// mount stays until it is unmounted.
func (s *Session) Abort() error {
	err := abort(s.agreed.conn)
	if err != nil && s.target != "" {
		// The kernel aborts before it finds out that the mount is busy.
		if forced := unix.Unmount(s.target, unix.MNT_FORCE|unix.UMOUNT_NOFOLLOW); forced == nil || errors.Is(forced, unix.EBUSY) {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("aborting FUSE session %s: %w", s.conf.Name, err)
	}
	return nil
}

// abort finds the connection's switch, through a mount of fusectl of our own
// where nobody mounted one.
func abort(conn uint32) error {
	name := filepath.Join(strconv.FormatUint(uint64(conn), 10), "abort")
	err := os.WriteFile(filepath.Join(connections, name), []byte("1"), 0)
	if err == nil || !errors.Is(err, os.ErrNotExist) {
		return err
	}
	fsc, err := kernel.OpenFS("fusectl")
	if err != nil {
		return err
	}
	defer fsc.Close()
	if err := fsc.Create(); err != nil {
		return err
	}
	mount, err := fsc.Mount(unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return err
	}
	defer mount.Close()
	fd, err := unix.Openat(int(mount.Fd()), name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.WriteString("1")
	return errors.Join(err, f.Close())
}
