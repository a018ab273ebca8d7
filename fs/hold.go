package fs

import (
	"context"
	"sync"

	"github.com/lazyerofs/lazyerofs/fs/driver"
)

// Hold opens the lazy layer that labels describe and makes its metadata resident,
// without mounting it: for who shows several layers in one mount. With mounted it
// leaves the metadata as a predecessor of this process made it, whose mount still
// stands, and needs no network. The layer stays open until release is called, which
// may be done more than once, or until Close. The error is a *MountError.
func (f *FS) Hold(ctx context.Context, labels map[string]string, mounted bool) (l driver.Layer, release func(), err error) {
	srcs, err := f.c.Sources(labels)
	if err != nil {
		return nil, nil, &MountError{Reason: ReasonSource, Err: err}
	}
	s, err := f.acquire(ctx, srcs, labels)
	if err != nil {
		return nil, nil, classify(err)
	}
	if !mounted {
		err = s.prepare(ctx)
	}
	if err != nil {
		f.release(s)
		return nil, nil, classify(err)
	}
	return s.layer, sync.OnceFunc(func() { f.release(s) }), nil
}
