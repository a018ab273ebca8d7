package testenv

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// DiskUsage returns how many bytes the files below dir occupy. A file with
// several names counts once, and what is mounted below dir does not count.
func DiskUsage(dir string) (int64, error) {
	type file struct{ dev, ino uint64 }
	var top unix.Stat_t
	if err := unix.Lstat(dir, &top); err != nil {
		return 0, fmt.Errorf("measuring what %s occupies: %w", dir, err)
	}
	seen := make(map[file]bool)
	var sum int64
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone since it was listed
		}
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); errors.Is(err, unix.ENOENT) {
			return nil
		} else if err != nil {
			return err
		}
		if st.Dev != top.Dev {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if id := (file{st.Dev, st.Ino}); !seen[id] {
			seen[id] = true
			sum += st.Blocks * 512
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("measuring what %s occupies: %w", dir, err)
	}
	return sum, nil
}

// clockTick is the unit of times in /proc (USER_HZ of every architecture that Go
// knows).
const clockTick = 10 * time.Millisecond

// CPUOf returns what a process has computed since its start, with its children,
// those that it has waited for and those that live.
func CPUOf(pid int) (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("asking what a process has computed: %w", err)
	}
	sum, err := cpuTimes(string(data))
	if err != nil {
		return 0, fmt.Errorf("asking what process %d has computed: %w", pid, err)
	}
	for _, child := range ChildrenOf(pid) {
		more, err := CPUOf(child)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // waited for meanwhile; the next call counts it
		}
		if err != nil {
			return 0, err
		}
		sum += more
	}
	return sum, nil
}

// cpuTimes returns the sum of utime, stime, cutime and cstime in a line of
// /proc/PID/stat (proc(5)).
func cpuTimes(stat string) (time.Duration, error) {
	// The name, in parentheses, may hold anything.
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	const utime, fieldsOfTime = 11, 4
	if len(fields) < utime+fieldsOfTime {
		return 0, fmt.Errorf("its status has %d fields", len(fields))
	}
	var sum time.Duration
	for _, f := range fields[utime : utime+fieldsOfTime] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("its status has a time of %q", f)
		}
		sum += time.Duration(n) * clockTick
	}
	return sum, nil
}
