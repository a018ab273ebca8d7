package wire

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
func (n *Node) wireVerity(ctx context.Context, cacheDir string) *dmverity.Driver {
	whole := dmverity.New(readAheadKB)
	if n.Config.Verity.DM {
		err := whole.Probe(cacheDir)
		if n.throughDM = err == nil; err != nil {
			log.G(ctx).WithError(err).Warn("verity.dm is set, but layers are mounted without dm-verity")
		}
	}
	if n.Config.Verity.FS {
		err := fsverity.Probe(cacheDir)
		if n.sealing = err == nil; err != nil {
			log.G(ctx).WithError(err).Warn("verity.fs is set, but the files of layers go without fs-verity")
		}
	}
	return whole
}

// whole is what mounts complete layers, or nil.
func (n *Node) whole(w *dmverity.Driver) fs.WholeDriver {
	if !n.throughDM {
		return nil
	}
	return w
}

// mountUnpacked mounts a layer that was unpacked here, through dm-verity if that is
// wanted and it has a hash tree.
func (n *Node) mountUnpacked(ctx context.Context, file, target string) error {
	if n.throughDM {
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
