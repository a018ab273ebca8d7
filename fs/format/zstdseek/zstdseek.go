package zstdseek

import (
	"context"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/format"
	"github.com/lazyerofs/lazyerofs/fs/format/internal/native"
	"github.com/lazyerofs/lazyerofs/fs/remote"
)

type zstdFormat struct{ native.Kind }

// New returns the format, whose name is "zstdseek".
func New() format.Format {
	return zstdFormat{native.Kind{
		ID: "zstdseek", Types: []string{chunk.MediaTypeLayerZstd, chunk.MediaTypeDraftLayerZstd}, Codec: chunk.CodecZstd,
		Framed: true, Decode: decode,
	}}
}

// Open reads the chunk index in one request. See format.Format.
func (f zstdFormat) Open(ctx context.Context, blob remote.Blob, desc ocispec.Descriptor) (*format.Plan, error) {
	plan, _, err := f.Plan(ctx, blob, desc)
	if err != nil {
		return nil, err
	}
	if v := native.Lookup(desc, chunk.LabelUncompressedDigest, chunk.AnnotationUncompressedDigest); v != "" {
		if plan.Whole, err = digest.Parse(v); err != nil {
			return nil, fmt.Errorf("%w: %s: its uncompressed digest %q is malformed", format.ErrNotLazy, blob.Digest(), v)
		}
	}
	return plan, nil
}

// decoder runs up to GOMAXPROCS decodes at once; more wait for a free one. It
// is shared because each holds tables of several hundred KiB.
var decoder = sync.OnceValues(func() (*zstd.Decoder, error) {
	return zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(0),
		zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(chunk.MaxChunkLen),
		zstd.WithDecodeAllCapLimit(true),
	)
})

// slack is what the decoder's fast loops may write past the end of a block.
// Room for it keeps them fast; data that fills it is refused.
const slack = 16

func decode(blob digest.Digest, dst, src []byte, c chunk.Chunk) ([]byte, error) {
	n, err := frameLen(src)
	if err != nil {
		return nil, native.Corrupt(native.ChunkName(blob, c), "%v", err)
	}
	if err := onlySkippable(src[n:]); err != nil {
		return nil, native.Corrupt(native.ChunkName(blob, c), "%v", err)
	}
	room := int(c.Data.Len) + slack
	if cap(dst) < room {
		dst = make([]byte, 0, room)
	}
	d, err := decoder()
	if err != nil {
		return nil, fmt.Errorf("making a zstd decoder: %w", err)
	}
	out, err := d.DecodeAll(src[:n], dst[:0:room])
	if err != nil {
		return nil, native.Corrupt(native.ChunkName(blob, c), "its zstd frame cannot be decoded: %v", err)
	}
	if int64(len(out)) != c.Data.Len {
		return nil, native.Corrupt(native.ChunkName(blob, c), "it decodes to %d bytes instead of %d", len(out), c.Data.Len)
	}
	return out, nil
}
