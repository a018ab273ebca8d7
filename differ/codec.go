package differ

import (
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// codec compresses and decompresses chunks on one goroutine.
type codec struct {
	enc *zstd.Encoder // nil for Raw
	dec *zstd.Decoder
}

// newCodec makes a codec for cfg.Form. Frames have no checksum of their own: the
// index holds a SHA-256 of each. They carry their content size, so that a reader
// can size its buffer.
func newCodec(cfg Config) (*codec, error) {
	if cfg.Form == Raw {
		return &codec{}, nil
	}
	window := zstd.MinWindowSize
	for int64(window) < cfg.ChunkSize && window < 8<<20 {
		window *= 2
	}
	enc, err := zstd.NewWriter(nil,
		zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderLevel(cfg.encoderLevel()),
		zstd.WithEncoderCRC(false),
		zstd.WithWindowSize(window))
	if err != nil {
		return nil, fmt.Errorf("preparing zstd encoder: %w", err)
	}
	dec, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderMaxMemory(uint64(cfg.ChunkSize)+1<<20))
	if err != nil {
		return nil, fmt.Errorf("preparing zstd decoder: %w", err)
	}
	return &codec{enc: enc, dec: dec}, nil
}

// encode appends the stored form of src to dst.
func (c *codec) encode(dst, src []byte) []byte {
	if c.enc == nil {
		return append(dst, src...)
	}
	return c.enc.EncodeAll(src, dst)
}

// decode appends the image data that src stores to dst.
func (c *codec) decode(dst, src []byte) ([]byte, error) {
	if c.dec == nil {
		return append(dst, src...), nil
	}
	out, err := c.dec.DecodeAll(src, dst)
	if err != nil {
		return nil, fmt.Errorf("decompressing a spooled chunk: %w", err)
	}
	return out, nil
}

func (c *codec) close() {
	if c.dec != nil {
		c.dec.Close()
	}
}
