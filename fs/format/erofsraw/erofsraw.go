package erofsraw

import (
	"context"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/format"
	"github.com/lazyerofs/lazyerofs/fs/format/internal/native"
	"github.com/lazyerofs/lazyerofs/fs/remote"
)

type rawFormat struct{}

// New returns the format.
func New() format.Format { return rawFormat{} }

// Name returns "erofsraw".
func (rawFormat) Name() string { return "erofsraw" }

// Match accepts containerd's and the draft's media type.
func (rawFormat) Match(desc ocispec.Descriptor) bool {
	return desc.MediaType == chunk.MediaTypeLayer || desc.MediaType == chunk.MediaTypeDraftLayer
}

// Open reads the chunk index in one request. See format.Format.
//
// Beyond the rules of an index it wants image data to start the blob and the
// index to end it: containerd mounts the blob as it is, and the blob's digest,
// which is also the layer's DiffID, must cover nothing that is not known.
func (rawFormat) Open(ctx context.Context, blob remote.Blob, desc ocispec.Descriptor) (*format.Plan, error) {
	s, err := native.Open(ctx, blob, desc, chunk.CodecNone, false)
	if err != nil {
		return nil, err
	}
	name := "chunk index of " + blob.Digest().String()
	if off := s.Index.At(0).Blob.Off; off != 0 {
		return nil, native.Corrupt(name, "the image begins at blob offset %d, not at 0", off)
	}
	if end := s.Range.End(); end != blob.Size() {
		return nil, native.Corrupt(name, "it ends at %d, the blob at %d", end, blob.Size())
	}
	id := blob.Digest()
	hint := native.Ends(desc, chunk.LabelPinned, s.Index.Size())
	return &format.Plan{
		Data:       s.Index,
		PinnedHint: hint,
		Prefetch:   native.Ends(desc, chunk.LabelPrefetch, s.Index.Size()),
		Whole:      id,
		Tail:       s.Index.Bytes(),
		Decode: func(dst, src []byte, c chunk.Chunk) ([]byte, error) {
			if err := native.Check(id, src, c); err != nil {
				return nil, err
			}
			return append(dst[:0], src...), nil
		},
		Validate: native.Validator(s.Index.Size(), hint),
	}, nil
}
