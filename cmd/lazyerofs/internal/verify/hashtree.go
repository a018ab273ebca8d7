package verify

import (
	"errors"
	"io"
	"os"

	"github.com/lazyerofs/lazyerofs/fs/dmverity"
	"github.com/lazyerofs/lazyerofs/fs/format"
)

// hashed has read read all image data of a layer and holds it against its hash tree,
// if there is one.
func (r *run) hashed(t *task, image io.ReaderAt, plan *format.Plan, read func(io.Writer) error) (err error) {
	if plan.Verity == nil {
		return read(io.Discard)
	}
	dir := r.cfg.Layers.WorkDir
	if dir == "" {
		dir = os.TempDir()
	}
	c, err := dmverity.NewChecker(dir, image, *plan.Verity)
	if err != nil {
		return errors.Join(r.orTreeFault(t, err), read(io.Discard))
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	before := t.layer.Faults
	if err := read(c); err != nil {
		return r.orTreeFault(t, err)
	}
	if t.layer.Faults > before || t.layer.Chunks == 0 {
		return nil // of an image that is wrong the tree is too
	}
	t.layer.Verity = plan.Verity.Root
	return r.orTreeFault(t, c.Finish())
}

// orTreeFault makes a fault of an error that is about the tree's bytes.
func (r *run) orTreeFault(t *task, err error) error {
	if errors.Is(err, dmverity.ErrMismatch) {
		t.layer.Verity = ""
		r.layerFault(t, "verity", "layer %s: %v", t.desc.Digest, err)
		return nil
	}
	if err == nil {
		return nil
	}
	return r.orFault(t, "verity", err)
}
