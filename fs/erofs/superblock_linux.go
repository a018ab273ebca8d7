package erofs

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The kernel calls a superblock erofs-<n> (or by device number, see
// isDeviceNumber) and gives the lowest free number to the next one, at once. Inodes
// of sysfs are not used again, so a name of ours is the kernel's, "@", and the inode
// of its directory below /sys/fs/erofs.

// entryName completes the kernel's name of a superblock that lives.
func entryName(name string) string {
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(sysfsEROFS, name), &st); err != nil {
		return name // no sysfs here, or not for this one
	}
	return name + "@" + strconv.FormatUint(st.Ino, 10)
}

// plainName is the kernel's own part of a name.
func plainName(name string) string {
	plain, _, _ := strings.Cut(name, "@")
	return plain
}

// SuperblockAlive reports whether the superblock of that name, as Mount and
// SuperblockOf gave it, still exists. An overlay keeps its layers' superblocks alive
// after they are unmounted; while one lives, its data file may not be punched or
// reused. Those of loop devices on kernels before 5.15 cannot be told from the next
// one on the same device: there the answer may be yes for another mount.
func SuperblockAlive(name string) bool {
	if isBlockName(name) {
		return blockAlive(name)
	}
	if !isSuperblockName(name) {
		return false
	}
	plain, inode, known := strings.Cut(name, "@")
	var st unix.Stat_t
	err := unix.Stat(filepath.Join(sysfsEROFS, plain), &st)
	if err == nil && known {
		return strconv.FormatUint(st.Ino, 10) == inode
	}
	return !errors.Is(err, os.ErrNotExist)
}
