//go:build !cgo || purego

package differ

import (
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// ZstdEncoder names what makes zstd frames in this build. Another one makes other
// bytes of the same tar.
const ZstdEncoder = "klauspost/compress"

// encoder makes zstd frames on one goroutine, where there is no C compiler. It has
// four levels, and needs 1.6 times as long as libzstd for frames that are 2 % longer.
type encoder struct{ enc *zstd.Encoder }

func newEncoder(cfg Config) (*encoder, error) {
	window := zstd.MinWindowSize
	for int64(window) < cfg.ChunkSize && window < 8<<20 {
		window *= 2
	}
	enc, err := zstd.NewWriter(nil,
		zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(cfg.Level)),
		zstd.WithEncoderCRC(false),
		zstd.WithWindowSize(window))
	if err != nil {
		return nil, fmt.Errorf("preparing zstd encoder: %w", err)
	}
	return &encoder{enc}, nil
}

// encode returns the frame of src, with its content size and without a checksum, in
// dst if it has room.
func (e *encoder) encode(dst, src []byte) ([]byte, error) {
	return e.enc.EncodeAll(src, dst[:0]), nil
}
