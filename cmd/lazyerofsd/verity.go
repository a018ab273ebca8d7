package main

import (
	"context"
	"path/filepath"

	"github.com/containerd/log"

	"github.com/lazyerofs/lazyerofs/fs"
	tree "github.com/lazyerofs/lazyerofs/fs/dmverity"
	"github.com/lazyerofs/lazyerofs/fs/driver/dmverity"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
	"github.com/lazyerofs/lazyerofs/fs/fsverity"
)

// wireVerity makes the driver of complete layers, which takes over what a predecessor
// mounted whatever the configuration says, and turns off what cannot be done here:
// layers are mounted without rather than not at all.
func (d *daemon) wireVerity(ctx context.Context, cacheDir string) *dmverity.Driver {
	whole := dmverity.New(readAheadKB)
	if d.c.Verity.DM {
		err := whole.Probe(cacheDir)
		if d.throughDM = err == nil; err != nil {
			log.G(ctx).WithError(err).Warn("verity.dm is set, but layers are mounted without dm-verity")
		}
	}
	if d.c.Verity.FS {
		err := fsverity.Probe(cacheDir)
		if d.sealing = err == nil; err != nil {
			log.G(ctx).WithError(err).Warn("verity.fs is set, but the files of layers go without fs-verity")
		}
	}
	return whole
}

// whole is what mounts complete layers, or nil.
func (d *daemon) whole(w *dmverity.Driver) fs.WholeDriver {
	if !d.throughDM {
		return nil
	}
	return w
}

// mountUnpacked mounts a layer that was unpacked here, through dm-verity if that is
// wanted and it has a hash tree.
func (d *daemon) mountUnpacked(ctx context.Context, file, target string) error {
	if d.throughDM {
		v, err := tree.ReadSidecar(file)
		if err == nil && v != nil {
			_, err = dmverity.MountFile(ctx, file, erofs.MountConfig{Target: target, Suid: true, Dev: true}, *v)
			if err == nil {
				return nil
			}
		}
		if err != nil {
			log.G(ctx).WithError(err).WithField("layer", filepath.Dir(file)).Warn("an unpacked layer is mounted without dm-verity")
		}
	}
	return mountErofs(ctx, file, "", target)
}
