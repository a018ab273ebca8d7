package cachefiles

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/kernel"
)

// attach mounts the superblock whose primary cookie is keys[0] and whose devices
// are the others, once ready says that it may be shown.
func attach(ctx context.Context, keys []string, target string, readAheadKB int, ready func() error) error {
	fsc, err := kernel.OpenFS("erofs")
	if err != nil {
		return err
	}
	defer fsc.Close()
	options := [][2]string{{"fsid", keys[0]}, {"domain_id", domain}}
	for _, k := range keys[1:] {
		options = append(options, [2]string{"device", k})
	}
	for _, o := range options {
		if err := fsc.SetString(o[0], o[1]); err != nil {
			return err
		}
	}
	if err := errors.Join(fsc.SetFlag("ro"), ctx.Err()); err != nil {
		return err
	}
	if err := create(fsc, readAheadKB); err != nil {
		return err
	}
	if err := ready(); err != nil {
		return err
	}
	// Whoever shows the layer to a container sets the flags; a single layer that is
	// bound as it is has only these.
	mnt, err := fsc.Mount(unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return err
	}
	defer mnt.Close()
	return attachAt(mnt, target)
}

func attachAt(mnt *os.File, target string) error {
	var err error
	ctlErr := control(mnt, func(fd int) {
		err = unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
	})
	if err = errors.Join(ctlErr, err); err != nil {
		return fmt.Errorf("attaching the mount: %w", err)
	}
	return nil
}

// naming lets one superblock at a time look for its own bdi, which nothing names
// before EROFS answers FS_IOC_GETFSSYSFSPATH.
var naming sync.Mutex

// create makes the superblock and sets its read-ahead. Other mounts at the same
// moment, of other processes too, may get ours: it is a matter of speed only.
func create(fsc *kernel.FSContext, readAheadKB int) error {
	if readAheadKB == 0 {
		return fsc.Create()
	}
	naming.Lock()
	defer naming.Unlock()
	before, err := bdis()
	if err != nil {
		return err
	}
	if err := fsc.Create(); err != nil {
		return err
	}
	after, err := bdis()
	if err != nil {
		return err
	}
	for name := range after {
		if before[name] {
			continue
		}
		err := os.WriteFile(filepath.Join(name, "read_ahead_kb"), []byte(strconv.Itoa(readAheadKB)), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // gone already: not ours
			return fmt.Errorf("setting the read-ahead: %w", err)
		}
	}
	return nil
}

// bdis are the backing devices of EROFS superblocks.
func bdis() (map[string]bool, error) {
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
