package testenv

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/tests/testenv/caches"
)

// Mounts returns the mount points at and below dir, the last mounted first.
func Mounts(dir string) ([]string, error) {
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return nil, fmt.Errorf("listing mounts below %s: %w", dir, err)
	}
	var points []string
	for _, i := range infos {
		points = append(points, i.Mountpoint)
	}
	slices.Reverse(points)
	return points, nil
}

// UnmountAll takes away every mount below dir, also those that are in use.
func UnmountAll(dir string) error {
	points, err := Mounts(dir)
	if err != nil {
		return err
	}
	for _, p := range points {
		if err := unix.Unmount(p, unix.MNT_DETACH); err != nil && err != unix.EINVAL {
			return fmt.Errorf("unmounting %s: %w", p, err)
		}
	}
	return nil
}

// Processes returns the ids of the processes, other than this one, that name
// dir in their command line.
func Processes(dir string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		// A process that has ended since the list was read names nothing.
		line, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err == nil && strings.Contains(string(line), dir) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// Descriptors returns what the open descriptors of this process refer to, by
// number, as /proc shows it.
func Descriptors() (map[int]string, error) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil, fmt.Errorf("listing descriptors: %w", err)
	}
	open := make(map[int]string, len(entries))
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			return nil, fmt.Errorf("listing descriptors: %w", err)
		}
		// The descriptor of the listing itself is gone by now.
		if to, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name())); err == nil {
			open[fd] = to
		}
	}
	return open, nil
}

// DropCaches writes back and empties the page, dentry and inode caches of the
// whole machine, so that the next reads come from the disk. It waits for tests that
// hold the caches.
func DropCaches() error { return caches.Drop() }
