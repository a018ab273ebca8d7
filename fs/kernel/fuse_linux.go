package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// HaveFUSE creates a FUSE superblock without attaching it and sees the
// kernel's FUSE_INIT request arrive.
func HaveFUSE() error {
	const what = "mounting a FUSE file system"
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return unsupported(what, fmt.Errorf("/dev/fuse: %w", err), "load the module fuse, or give the container /dev/fuse")
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return unsupported(what, fmt.Errorf("/dev/fuse: %w", err), "allow access to the device")
	case err != nil:
		return fmt.Errorf("%s: /dev/fuse: %w", what, err)
	}
	// Closing the device ends the connection and whatever waits on it.
	defer unix.Close(fd)
	if err := tryFUSE(fd); err != nil {
		return refusal(what, err, map[unix.Errno]string{
			unix.ENODEV: "the kernel has no FUSE; enable CONFIG_FUSE_FS or load the module fuse",
			unix.EPERM:  "it needs CAP_SYS_ADMIN in this user namespace; run as root or in a user namespace of your own",
		})
	}
	return nil
}

func tryFUSE(fd int) error {
	ctx, err := OpenFS("fuse")
	if err != nil {
		return err
	}
	defer ctx.Close()
	for _, o := range [][2]string{
		{"source", "lazyerofs-probe"},
		{"fd", fmt.Sprint(fd)},
		{"rootmode", "40000"},
		{"user_id", fmt.Sprint(os.Geteuid())},
		{"group_id", fmt.Sprint(os.Getegid())},
	} {
		if err := ctx.SetString(o[0], o[1]); err != nil {
			return err
		}
	}
	if err := ctx.Create(); err != nil {
		return err
	}
	mount, err := ctx.Mount(unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return err
	}
	defer mount.Close()
	return readInit(fd)
}

// readInit reads the first request. It was queued when the superblock was
// made, so the descriptor is readable at once.
func readInit(fd int) error {
	const opInit = 26
	buf := make([]byte, 64<<10)
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, int(probeWait.Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("waiting for FUSE_INIT: %w", err)
		}
		break
	}
	n, err := unix.Read(fd, buf)
	if err != nil {
		return fmt.Errorf("reading FUSE_INIT: %w", err)
	}
	if n < 8 || binary.NativeEndian.Uint32(buf[4:]) != opInit {
		return fmt.Errorf("reading FUSE_INIT: %d bytes of something else", n)
	}
	return nil
}

// ProbeImage is a small EROFS image with the features that our layers use, the
// name of the one file in its root, and what that holds: for probes that other
// packages carry out.
func ProbeImage() (image []byte, name string, content []byte) {
	image, content = probeImage()
	return image, probeFile, content
}

// EROFSRefusal makes of the error of a mount of ProbeImage from a FUSE file or a
// loop device the answer of a probe.
func EROFSRefusal(err error) error {
	if err == nil || errors.Is(err, ErrNotSupported) {
		return err
	}
	return refusal("mounting an EROFS image", err, map[unix.Errno]string{
		unix.ENODEV:     "the kernel has no EROFS; enable CONFIG_EROFS_FS or load the module erofs",
		unix.ENOTBLK:    "the kernel mounts EROFS neither from a FUSE file nor from a loop device",
		unix.ENOENT:     "there are no loop devices; load the module loop, or give the container /dev/loop-control",
		unix.EINVAL:     "the kernel's EROFS lacks chunk-based files or device tables; Linux 5.16 or newer is needed",
		unix.EOPNOTSUPP: "the kernel's EROFS lacks a feature of the image; Linux 5.16 or newer is needed",
	})
}
