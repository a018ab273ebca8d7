package all

import (
	"context"
	"errors"
	"slices"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/cachefiles"
	"github.com/lazyerofs/lazyerofs/fs/driver/fanotify"
	"github.com/lazyerofs/lazyerofs/fs/driver/fuseblock"
	"github.com/lazyerofs/lazyerofs/fs/driver/fusetree"
)

// Config is what drivers have in common.
type Config struct {
	// Keeper guards what serves mounts against the end of this process. Required.
	Keeper driver.Keeper
	// Inherited holds what a predecessor kept. Each driver takes what is its own.
	Inherited driver.Inheritance
	// ReadAheadKB is the read-ahead of lazy mounts in KiB; 0 leaves the kernel's.
	ReadAheadKB int
	// Quarantine, if set, is told the IDs of layers whose mounts may have read
	// wrong bytes. It must not block.
	Quarantine func(layerIDs []string, why error)
	// CachefilesDir is the directory of the kernel's own cache, scratch of the
	// cachefiles driver, on the file system of the data files. It mounts nothing without.
	CachefilesDir string
}

// New makes every driver, for driver.Select to choose from. A driver asks
// nothing of the kernel before it is probed or used, except when a predecessor
// left it something to serve. After an error none is left running.
func New(ctx context.Context, c Config) (list []driver.Server, err error) {
	for _, create := range []func(context.Context, Config) (driver.Server, error){
		newFanotify, newCachefiles, newFuseblock, newFusetree,
	} {
		d, err := create(ctx, c)
		if err != nil {
			for _, made := range slices.Backward(list) {
				err = errors.Join(err, made.Shutdown(ctx))
			}
			return nil, err
		}
		list = append(list, d)
	}
	return list, nil
}

func newFanotify(ctx context.Context, c Config) (driver.Server, error) {
	return fanotify.New(ctx, fanotify.Config{
		Keeper: c.Keeper, Inherited: c.Inherited, ReadAheadKB: c.ReadAheadKB, Quarantine: c.Quarantine,
	})
}

func newCachefiles(ctx context.Context, c Config) (driver.Server, error) {
	return cachefiles.New(ctx, cachefiles.Config{
		Keeper: c.Keeper, Inherited: c.Inherited, Dir: c.CachefilesDir, ReadAheadKB: c.ReadAheadKB,
	})
}

func newFuseblock(ctx context.Context, c Config) (driver.Server, error) {
	return fuseblock.New(ctx, fuseblock.Config{
		Keeper: c.Keeper, Inherited: c.Inherited, ReadAheadKB: c.ReadAheadKB,
		DirectIO: true, // what is cached in the mount need not be cached in the FUSE file too
	})
}

func newFusetree(ctx context.Context, c Config) (driver.Server, error) {
	return fusetree.New(ctx, fusetree.Config{Keeper: c.Keeper, Inherited: c.Inherited, ReadAheadKB: c.ReadAheadKB})
}
