package native

import (
	"context"
	"fmt"
	"io"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// validator returns the Validate of a plan whose image is size bytes long: the
// strict parser, which reads no further than hint until metadata turns up
// beyond it. What the kernel can read as metadata must be resident. A refused
// image gives an *erofs.RefusedError.
func validator(size int64, hint chunk.Extent) func(context.Context, io.ReaderAt) ([]chunk.Extent, error) {
	return func(_ context.Context, image io.ReaderAt) ([]chunk.Extent, error) {
		policy := erofs.DefaultPolicy(size)
		policy.MetaHint = hint.End()
		parsed, err := erofs.Parse(image, policy)
		if err != nil {
			return nil, fmt.Errorf("checking the layer's metadata: %w", err)
		}
		pinned := make([]chunk.Extent, len(parsed.MetaExtents))
		for i, r := range parsed.MetaExtents {
			pinned[i] = chunk.Extent{Off: r.Off, Len: r.Len}
		}
		return pinned, nil
	}
}
