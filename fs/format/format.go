package format

import (
	"context"
	"io"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/remote"
)

// Format turns one kind of layer blob into a Plan. A new layer format is one
// folder that implements it and a line in format/all.
type Format interface {
	// Name is short and stable; it goes into logs, metrics and persisted state.
	Name() string
	// Match reports whether the format reads such a layer. It looks only at the
	// media type and the annotations and does no I/O.
	Match(desc ocispec.Descriptor) bool
	// Open fetches what is needed to locate every chunk and verifies it against
	// the descriptor. It opens no kernel object. A layer that cannot be loaded
	// lazily (no index, unknown version) gives an error that wraps ErrNotLazy; a
	// layer that contradicts its own digests gives a *chunk.CorruptError.
	Open(ctx context.Context, blob remote.Blob, desc ocispec.Descriptor) (*Plan, error)
}

// Plan is everything needed to turn one blob into a mountable data file. The
// whole difference between formats is in its fields.
type Plan struct {
	// Meta is a complete EROFS image that was written on this node from a foreign
	// table of contents; the data file is then its device 1. nil for native
	// layers: the data file is itself the primary device.
	Meta io.ReaderAt
	// MetaSize is the length of Meta in bytes; 0 when Meta is nil.
	MetaSize int64
	// Data locates every byte of the data file.
	Data chunk.Map
	// Verity says where the hash tree is with which the image data ends; nil when it
	// is an EROFS image to its end.
	Verity *chunk.Verity
	// PinnedHint is the range of image data that Validate will most likely read,
	// fetched ahead of it in one request; empty when nothing is known.
	PinnedHint chunk.Extent
	// Prefetch is the range of image data that start-up reads first; empty when
	// the image does not say.
	Prefetch chunk.Extent
	// Whole is the digest of the image data followed by Tail, against which a
	// complete layer is checked; empty when the blob's descriptor gives none.
	Whole digest.Digest
	// Tail is what Whole covers after the image data: the index of a raw layer,
	// whose digest is that of the blob.
	Tail []byte
	// Decode verifies src, the stored bytes of c, and appends c's image data to
	// dst[:0]. Wrong bytes give a *chunk.CorruptError and no data. It is safe for
	// concurrent use and keeps neither slice.
	Decode func(dst, src []byte, c chunk.Chunk) ([]byte, error)
	// Validate runs the strict parser over image (image-data address space, reads
	// fetch what is missing) and returns the extents of image data that must be
	// resident before the kernel may mount. nil when Meta is set: that image was
	// made here.
	Validate func(ctx context.Context, image io.ReaderAt) ([]chunk.Extent, error)
}

// ImageSize is the length of the EROFS image with which the image data begins, in
// bytes. Behind it there is at most a hash tree, which no mount reads.
func (p *Plan) ImageSize() int64 {
	if p.Verity != nil {
		return p.Verity.HashOffset
	}
	return p.Data.Size()
}
