package kernel

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// HaveOverlay mounts an overlay with a lower, an upper and a work directory
// below cacheDir, writes through it and reads the result: what containerd does
// for every container.
func HaveOverlay(cacheDir string) error {
	const what = "mounting an overlay"
	dir, err := os.MkdirTemp(cacheDir, ".probe-overlay-")
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer os.RemoveAll(dir)
	if err := tryOverlay(dir); err != nil {
		return refusal(what, err, map[unix.Errno]string{
			unix.ENODEV: "the kernel has no overlayfs; enable CONFIG_OVERLAY_FS or load the module overlay",
			unix.EINVAL: "overlayfs refuses this directory as upper layer; " +
				"put the cache directory on a file system with extended attributes and d_type (ext4, xfs, btrfs), not on an overlay",
			unix.EOPNOTSUPP: "the file system of the cache directory cannot be an upper layer; use ext4, xfs or btrfs",
		})
	}
	return nil
}

func tryOverlay(dir string) error {
	for _, d := range []string{"lower", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "lower", probeFile), []byte("lower"), 0o600); err != nil {
		return err
	}
	root, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	ctx, err := OpenFS("overlay")
	if err != nil {
		return err
	}
	defer ctx.Close()
	// Through the descriptor: option strings hold 255 bytes, and a colon in the
	// path would separate layers.
	at := fmt.Sprintf("/proc/self/fd/%d/", root.Fd())
	for _, o := range [][2]string{{"lowerdir", "lower"}, {"upperdir", "upper"}, {"workdir", "work"}} {
		if err := ctx.SetString(o[0], at+o[1]); err != nil {
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
	// Opening for writing copies the file up.
	fd, err := unix.Openat(int(mount.Fd()), probeFile, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("copying a file up: %w", err)
	}
	f := os.NewFile(uintptr(fd), probeFile)
	if _, err := f.WriteString("upper"); err != nil {
		_ = f.Close() // err says why the probe failed
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	got, err := os.ReadFile(filepath.Join(dir, "upper", probeFile))
	if err != nil {
		return err
	}
	if string(got) != "upper" {
		return fmt.Errorf("the upper layer holds %q, not what was written", got)
	}
	return nil
}
