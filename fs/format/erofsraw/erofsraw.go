package erofsraw

import (
	"context"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/format"
	"github.com/lazyerofs/lazyerofs/fs/format/internal/native"
	"github.com/lazyerofs/lazyerofs/fs/remote"
)

type rawFormat struct{ native.Kind }

// New returns the format, whose name is "erofsraw".
func New() format.Format {
	return rawFormat{native.Kind{
		ID: "erofsraw", Types: []string{chunk.MediaTypeLayer, chunk.MediaTypeDraftLayer}, Codec: chunk.CodecNone,
		Decode: func(_ digest.Digest, dst, src []byte, _ chunk.Chunk) ([]byte, error) {
			return append(dst[:0], src...), nil
		},
	}}
}

// Open reads the chunk index in one request. See format.Format.
//
// Beyond the rules of an index it wants image data to start the blob and the
// index to end it: containerd mounts the blob as it is, and the blob's digest,
// which is also the layer's DiffID, must cover nothing that is not known.
func (f rawFormat) Open(ctx context.Context, blob remote.Blob, desc ocispec.Descriptor) (*format.Plan, error) {
	plan, s, err := f.Plan(ctx, blob, desc)
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
	plan.Whole, plan.Tail = blob.Digest(), s.Index.Bytes()
	return plan, nil
}
