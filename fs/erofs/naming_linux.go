package erofs

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// nameLock is what one mount at a time holds while it looks for its own
// superblock by comparing what was there before and after. Processes that mount
// for us (package mountproc) take part, so it is a lock on a directory that is
// always there.
const nameLock = "/sys/fs"

// lock takes the lock of a file for this holder alone. It goes with the
// descriptor, which the caller closes.
func lock(path string, flags int) (*os.File, error) {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	for {
		err := unix.Flock(fd, unix.LOCK_EX)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("locking %s: %w", path, err), f.Close())
		}
	}
}

// detachedNamed is detached with the superblock's name.
func detachedNamed(ctx context.Context, cfg MountConfig) (*os.File, string, error) {
	mount, err := detached(ctx, cfg)
	if err != nil {
		return nil, "", err
	}
	name, err := superblockName(int(mount.Fd()), ".")
	if err == nil {
		return mount, name, nil
	}
	_ = mount.Close() // nothing was written through it
	if !errors.Is(err, unix.ENOTTY) && !errors.Is(err, unix.EOPNOTSUPP) {
		return nil, "", err
	}
	return detachedByList(ctx, cfg)
}

// detachedByList is for kernels without the ioctl. Others that mount at the same
// moment, and do not take the lock, make it try again.
func detachedByList(ctx context.Context, cfg MountConfig) (*os.File, string, error) {
	held, err := lock(nameLock, unix.O_RDONLY)
	if err != nil {
		return nil, "", err
	}
	defer held.Close()
	for {
		before := superblocks()
		mount, err := detached(ctx, cfg)
		if err != nil {
			return nil, "", err
		}
		name, err := onlyNew(before, superblocks())
		if err == nil {
			return mount, entryName(name), nil
		}
		_ = mount.Close() // nothing was written through it
		if !errors.Is(err, unix.EAGAIN) {
			return nil, "", err
		}
	}
}

// superblocks lists the EROFS superblocks there are.
func superblocks() map[string]bool {
	entries, err := os.ReadDir(sysfsEROFS)
	if err != nil {
		return nil // no EROFS yet: the module is loaded by the mount
	}
	all := map[string]bool{}
	for _, e := range entries {
		if isSuperblockName(e.Name()) {
			all[e.Name()] = true
		}
	}
	return all
}

// onlyNew finds the superblock that a mount made, for kernels without the
// ioctl. It fails, rather than guesses, when others mounted meanwhile.
func onlyNew(before, after map[string]bool) (string, error) {
	var name string
	for n := range after {
		if before[n] {
			continue
		}
		if name != "" {
			return "", fmt.Errorf("several EROFS mounts were made at once (%s, %s): %w", name, n, unix.EAGAIN)
		}
		name = n
	}
	if name == "" {
		return "", fmt.Errorf("the new superblock is not in %s: %w", sysfsEROFS, os.ErrNotExist)
	}
	return name, nil
}
