package imagedata

import (
	"context"
	"errors"
	"fmt"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/format"
	"github.com/lazyerofs/lazyerofs/fs/remote"
)

// Formats returns the formats with errors that name the source of a blob that Layers
// has opened: they know of registries only.
func Formats(list []format.Format) []format.Format {
	out := make([]format.Format, len(list))
	for i, f := range list {
		out[i] = ofSource{f}
	}
	return out
}

// ofSource is a format of Formats.
type ofSource struct{ format.Format }

// Open implements format.Format.
func (f ofSource) Open(ctx context.Context, blob remote.Blob, desc ocispec.Descriptor) (*format.Plan, error) {
	plan, err := f.Format.Open(ctx, blob, desc)
	local, ok := blob.(*localBlob)
	if !ok {
		return plan, err
	}
	if err != nil {
		return nil, local.of(err)
	}
	decode := plan.Decode
	plan.Decode = func(dst, src []byte, c chunk.Chunk) ([]byte, error) {
		b, err := decode(dst, src, c)
		return b, local.of(err)
	}
	return plan, nil
}

// of says of corrupt bytes that they are from the place that the blob is in.
func (b *localBlob) of(err error) error {
	var corrupt *chunk.CorruptError
	if !errors.As(err, &corrupt) {
		return err
	}
	said := fmt.Sprintf("%s from %s is corrupt: %s", corrupt.What, b.from, corrupt.Reason)
	return &localError{strings.ReplaceAll(err.Error(), corrupt.Error(), said), err}
}

// localError is an error in other words.
type localError struct {
	text string
	err  error
}

func (e *localError) Error() string { return e.text }

// Unwrap returns the error in the words that it had.
func (e *localError) Unwrap() error { return e.err }
