package formattest

import (
	"bytes"
	"errors"
	"os"
	"slices"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/dmverity"
)

// WithTree returns image, a whole number of blocks, with its dm-verity hash tree
// behind it, and what the annotations of such a layer say.
func WithTree(image []byte) (data []byte, v chunk.Verity, err error) {
	b, err := dmverity.NewBuilder(os.TempDir())
	if err != nil {
		return nil, v, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	if err := b.Add(dmverity.AppendLeaves(nil, image)); err != nil {
		return nil, v, err
	}
	t, err := b.Finish()
	if err != nil {
		return nil, v, err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	out := bytes.NewBuffer(slices.Clone(image))
	_, err = t.WriteTo(out)
	return out.Bytes(), t.Verity, err
}
