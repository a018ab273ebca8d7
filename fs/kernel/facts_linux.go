package kernel

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Facts is what doctor shows beside the capabilities. It is for people: no
// decision may hang on it.
type Facts struct {
	// Release is the kernel's own name for itself, for show only.
	Release string
	// Machine is the hardware name, for example "x86_64".
	Machine string
	// PageSize is in bytes. An EROFS block may not be larger.
	PageSize int
	// Root says whether the effective user id is 0.
	Root bool
	// SysAdmin says whether CAP_SYS_ADMIN is effective.
	SysAdmin bool
	// InitUserNS says whether ids map one to one, as they do in the initial user
	// namespace.
	InitUserNS bool
	// FSType is the type of the file system that holds the cache directory as
	// mountinfo names it, and MountPoint where it is mounted.
	FSType, MountPoint string
	// FreeBytes is the space left there for an unprivileged user.
	FreeBytes uint64
}

// Describe collects the facts about this machine and cacheDir, which must exist.
func Describe(cacheDir string) (Facts, error) {
	var f Facts
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return f, fmt.Errorf("uname: %w", err)
	}
	f.Release = unix.ByteSliceToString(u.Release[:])
	f.Machine = unix.ByteSliceToString(u.Machine[:])
	f.PageSize = os.Getpagesize()
	f.Root = os.Geteuid() == 0
	var err error
	if f.SysAdmin, err = hasSysAdmin(); err != nil {
		return f, err
	}
	if f.InitUserNS, err = inInitUserNS(); err != nil {
		return f, err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(cacheDir, &st); err != nil {
		return f, fmt.Errorf("statfs %s: %w", cacheDir, err)
	}
	f.FreeBytes = st.Bavail * uint64(st.Bsize)
	f.FSType, f.MountPoint, err = mountOf(cacheDir)
	return f, err
}

func hasSysAdmin() (bool, error) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false, fmt.Errorf("capget: %w", err)
	}
	return data[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0, nil
}

func inInitUserNS() (bool, error) {
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false, fmt.Errorf("reading the user namespace's map: %w", err)
	}
	return strings.Join(strings.Fields(string(b)), " ") == "0 0 4294967295", nil
}

// mountOf finds the mount that dir is on by the mount id of its descriptor, so
// that neither symbolic links nor mounts on top of each other mislead it.
func mountOf(dir string) (fstype, point string, err error) {
	var stx unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, 0, unix.STATX_MNT_ID, &stx); err != nil {
		return "", "", fmt.Errorf("statx %s: %w", dir, err)
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	return findMount(bufio.NewScanner(f), fmt.Sprint(stx.Mnt_id))
}

// findMount reads lines "id parent maj:min root point options... - type source
// options" (proc_pid_mountinfo(5)).
func findMount(s *bufio.Scanner, id string) (fstype, point string, err error) {
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		head, tail, ok := strings.Cut(s.Text(), " - ")
		before, after := strings.Fields(head), strings.Fields(tail)
		if !ok || len(before) < 5 || len(after) < 1 || before[0] != id {
			continue
		}
		return after[0], before[4], nil
	}
	if err := s.Err(); err != nil {
		return "", "", fmt.Errorf("reading mountinfo: %w", err)
	}
	return "", "", fmt.Errorf("mount %s is not in mountinfo", id)
}
