package fs

import (
	"context"
	"errors"
	"os"

	"github.com/containerd/log"

	"github.com/lazyerofs/lazyerofs/fs/fsverity"
)

// seal turns fs-verity on for the file of a layer that was unpacked here, if that is
// wanted. A layer is mounted without rather than not at all.
func (f *FS) seal(ctx context.Context, file string) {
	if !f.c.Seal {
		return
	}
	r, err := os.Open(file)
	if err == nil {
		_, err = fsverity.Seal(r)
		err = errors.Join(err, r.Close())
	}
	if err != nil {
		log.G(ctx).WithError(err).WithField("file", file).Warn("a layer goes without fs-verity")
	}
}
