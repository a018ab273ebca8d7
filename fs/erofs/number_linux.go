package erofs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// isDeviceNumber reports whether a superblock is called by the number of its
// anonymous device, "0:29", as Linux 7.2 does where 6.18 has "erofs-7".
func isDeviceNumber(name string) bool {
	major, minor, ok := strings.Cut(plainName(name), ":")
	return ok && isNumber(major) && isNumber(minor)
}

// detachedReadAhead is detachedNamed for kernels that call superblocks by number:
// the read-ahead is below a name that nothing ties to it, so it is set for whatever
// EROFS is mounted at that moment. Another process's mount may get it too, which is
// a matter of speed only.
func detachedReadAhead(ctx context.Context, cfg MountConfig) (_ *os.File, _ string, err error) {
	held, err := lock(nameLock, unix.O_RDONLY)
	if err != nil {
		return nil, "", err
	}
	defer held.Close()
	before, err := backingDevices()
	if err != nil {
		return nil, "", err
	}
	mount, err := detached(ctx, cfg)
	if err != nil {
		return nil, "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, mount.Close())
		}
	}()
	name, err := superblockName(int(mount.Fd()), ".")
	if err != nil {
		return nil, "", err
	}
	after, err := backingDevices()
	if err != nil {
		return nil, "", err
	}
	for dir := range after {
		if before[dir] {
			continue
		}
		err := os.WriteFile(filepath.Join(dir, "read_ahead_kb"), []byte(strconv.Itoa(cfg.ReadAheadKB)), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // gone already: not ours
			return nil, "", fmt.Errorf("setting the read-ahead: %w", err)
		}
	}
	return mount, name, nil
}

// backingDevices are the directories of EROFS superblocks below /sys/class/bdi.
func backingDevices() (map[string]bool, error) {
	list, err := filepath.Glob("/sys/class/bdi/erofs-*")
	if err != nil {
		return nil, fmt.Errorf("looking for backing devices: %w", err)
	}
	all := map[string]bool{}
	for _, b := range list {
		all[b] = true
	}
	return all, nil
}
