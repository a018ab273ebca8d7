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

	"github.com/lazyerofs/lazyerofs/fs/driver/mountproc"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// attach mounts the superblock whose primary cookie is keys[0] and whose devices
// are the others, once ready says that it may be shown. Making it asks us for the
// objects and for metadata, so that a process of its own has to (package mountproc).
func attach(ctx context.Context, keys []string, target string, readAheadKB int, ready func() error) error {
	sb := mountproc.Context{
		FSType: "erofs", Options: [][2]string{{"fsid", keys[0]}, {"domain_id", domain}}, Flags: []string{"ro"},
		// Whoever shows the layer to a container sets the flags; a single layer that is
		// bound as it is has only these.
		Attrs: unix.MOUNT_ATTR_RDONLY,
	}
	for _, k := range keys[1:] {
		sb.Options = append(sb.Options, [2]string{"device", k})
	}
	mnt, err := create(ctx, &sb, readAheadKB)
	if err != nil {
		return err
	}
	defer mnt.Close()
	if err := ready(); err != nil {
		return err
	}
	_, err = erofs.Attach(mnt, "", target)
	return err
}

// naming lets one superblock at a time look for its own bdi, which nothing names
// before EROFS answers FS_IOC_GETFSSYSFSPATH.
var naming sync.Mutex

// create makes the superblock, with a detached mount, and sets its read-ahead. Other
// mounts at the same moment, of other processes too, may get ours: it is a matter of
// speed only.
func create(ctx context.Context, sb *mountproc.Context, readAheadKB int) (*os.File, error) {
	order := mountproc.Order{Context: sb}
	if readAheadKB == 0 {
		made, err := mountproc.Run(ctx, order)
		return made.Mount, err
	}
	naming.Lock()
	defer naming.Unlock()
	before, err := bdis()
	if err != nil {
		return nil, err
	}
	made, err := mountproc.Run(ctx, order)
	if err != nil {
		return nil, err
	}
	after, err := bdis()
	if err != nil {
		return nil, errors.Join(err, made.Mount.Close())
	}
	for name := range after {
		if before[name] {
			continue
		}
		err := os.WriteFile(filepath.Join(name, "read_ahead_kb"), []byte(strconv.Itoa(readAheadKB)), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // gone already: not ours
			return nil, errors.Join(fmt.Errorf("setting the read-ahead: %w", err), made.Mount.Close())
		}
	}
	return made.Mount, nil
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
