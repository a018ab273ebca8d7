package kernel

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const cachefilesDevice = "/dev/cachefiles"

// HaveCachefilesOnDemand binds an on-demand cache to a directory below
// cacheDir, has EROFS ask it for an image, and lets go of it (Linux 5.19 to 7.0,
// where the distribution builds it). "dir" is said before "bind ondemand": without a directory every kernel
// answers EINVAL to bind, and that could not be told from a missing on-demand
// mode.
func HaveCachefilesOnDemand(cacheDir string) error {
	return HaveCachefilesOnDemandBy(cacheDir, mountByID)
}

// HaveCachefilesOnDemandBy is HaveCachefilesOnDemand for a process that must not be
// left behind unkillable: mount tries to make an EROFS superblock of that fsid, which
// always fails, in another process. It waits for this one, which answers.
func HaveCachefilesOnDemandBy(cacheDir string, mount func(fsid string) error) error {
	return haveCachefiles(cachefilesDevice, cacheDir, mount)
}

func haveCachefiles(device, cacheDir string, mount func(fsid string) error) error {
	const what = "binding an on-demand cachefiles cache"
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return unsupported(what, err, "the kernel has no cachefiles; load the module cachefiles or use another driver")
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return unsupported(what, err, needAdmin)
	case err != nil: // EBUSY: some daemon holds it
		return fmt.Errorf("%s: %w", what, err)
	}
	// Closing unbinds; the directories that bind made go afterwards.
	dir, err := os.MkdirTemp(cacheDir, ".probe-cachefiles-")
	if err != nil {
		_ = f.Close() // err says why the probe failed
		return fmt.Errorf("%s: %w", what, err)
	}
	defer os.RemoveAll(dir)
	defer f.Close()
	dir, err = filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	for _, c := range []string{"dir " + dir, "tag lazyerofs-probe"} {
		if _, err := f.WriteString(c); err != nil {
			return fmt.Errorf("%s: %q: %w", what, c, err)
		}
	}
	_, err = f.WriteString("bind ondemand")
	switch {
	case errors.Is(err, unix.EINVAL):
		return unsupported(what, err, "the kernel's cachefiles has no on-demand mode (CONFIG_CACHEFILES_ONDEMAND); use another driver")
	case errors.Is(err, unix.EOPNOTSUPP):
		return unsupported(what, err, "the file system cannot hold a cachefiles cache; put the cache directory on ext4 or xfs")
	case err != nil:
		return fmt.Errorf("%s: %w", what, err)
	}
	return erofsAsks(f, mount)
}
