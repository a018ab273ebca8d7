package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// probeDir begins the names of directories below os.TempDir on which probes mount;
// the process follows. Those in a cache directory begin with .probe-, and nothing is
// mounted on them.
const probeDir = "lazyerofs-probe-"

// probeAge is how old a .probe- directory must be to be a dead process's: no probe
// takes half a minute.
const probeAge = time.Minute

// ProbeTarget makes a directory for a probe to mount on, which RemoveLeftovers knows.
func ProbeTarget() (string, error) {
	return os.MkdirTemp("", fmt.Sprintf("%s%d-", probeDir, os.Getpid()))
}

// RemoveLeftovers removes what probes of processes that were killed have left in
// cacheDir and in the directory for temporary files, mounts included. What
// cannot be removed is in the error.
func RemoveLeftovers(ctx context.Context, cacheDir string) error {
	var errs []error
	for _, pattern := range []string{filepath.Join(cacheDir, ".probe-*"), filepath.Join(os.TempDir(), probeDir+"*")} {
		dirs, err := filepath.Glob(pattern)
		if err != nil {
			errs = append(errs, fmt.Errorf("looking for %s: %w", pattern, err))
		}
		for _, dir := range dirs {
			errs = append(errs, removeLeftover(ctx, dir))
		}
	}
	return errors.Join(errs...)
}

func removeLeftover(ctx context.Context, dir string) error {
	if !abandoned(dir) {
		return nil
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return fmt.Errorf("looking for mounts of a probe: %w", err)
	}
	// Nobody answers for these mounts: they must not be looked at.
	for _, m := range slices.Backward(mounts) {
		if err := unmountLeftover(ctx, m.Mountpoint); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}

// abandoned reports whether the process that made dir is gone.
func abandoned(dir string) bool {
	owner, ok := strings.CutPrefix(filepath.Base(dir), probeDir)
	if !ok {
		st, err := os.Lstat(dir)
		return err == nil && st.IsDir() && time.Since(st.ModTime()) > probeAge
	}
	owner, _, _ = strings.Cut(owner, "-")
	pid, err := strconv.Atoi(owner)
	return err == nil && errors.Is(unix.Kill(pid, 0), unix.ESRCH)
}

func unmountLeftover(ctx context.Context, target string) error {
	err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EPERM) { // an ordinary user's
		err = exec.CommandContext(ctx, "fusermount3", "-u", "-z", "--", target).Run()
	}
	if err != nil {
		return fmt.Errorf("unmounting what a probe left at %s: %w", target, err)
	}
	return nil
}
