package verify

import (
	"context"
	"errors"
	"io"
	"math"
	"os"

	"github.com/lazyerofs/lazyerofs/cmd/lazyerofs/internal/imagedata"
	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/dmverity"
)

// hashed has read read all image data of a layer and holds it against the hash tree
// that v describes, if there is one. read says whether it came to the end.
func (r *run) hashed(t *task, image io.ReaderAt, v *chunk.Verity, read func(io.Writer) (bool, error)) (err error) {
	if v == nil {
		_, err := read(io.Discard)
		return err
	}
	dir := r.cfg.Layers.WorkDir
	if dir == "" {
		dir = os.TempDir()
	}
	c, err := dmverity.NewChecker(dir, image, *v)
	if err != nil {
		_, rerr := read(io.Discard)
		return errors.Join(r.orTreeFault(t, err), rerr)
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	before := t.layer.Faults
	whole, err := read(c)
	if err != nil {
		return r.orTreeFault(t, err)
	}
	if t.layer.Faults > before || !whole {
		return nil // of an image that is wrong the tree is too
	}
	t.layer.Verity = v.Root
	return r.orTreeFault(t, c.Finish())
}

// unindexedTree holds the image of a layer without chunks, and all that comes behind
// it, against its hash tree.
func (r *run) unindexedTree(ctx context.Context, t *task, data io.ReaderAt) error {
	if t.desc.Annotations[chunk.AnnotationIndexRange] != "" {
		return nil // an index of a version that is not known comes behind the tree
	}
	v, err := chunk.ParseVerity(t.desc.Annotations, math.MaxInt64)
	if err != nil {
		r.layerFault(t, "annotation", "layer %s: %v", t.desc.Digest, err)
		return nil
	}
	if v == nil {
		return nil // and so nothing more to read
	}
	return r.hashed(t, data, v, func(tree io.Writer) (bool, error) {
		_, err := io.Copy(tree, imagedata.Stoppable(ctx, io.NewSectionReader(data, 0, math.MaxInt64)))
		return err == nil, err
	})
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
