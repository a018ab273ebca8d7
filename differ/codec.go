package differ

import (
	"crypto/sha256"
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// codec compresses and decompresses chunks on one goroutine.
type codec struct {
	enc *encoder // nil for Raw
	dec *zstd.Decoder
}

// newCodec makes a codec for cfg.Form. Frames have no checksum of their own: the
// index holds a SHA-256 of each. They carry their content size, so that a reader
// can size its buffer.
func newCodec(cfg Config) (*codec, error) {
	if cfg.Form == Raw {
		return &codec{}, nil
	}
	enc, err := newEncoder(cfg)
	if err != nil {
		return nil, err
	}
	dec, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderMaxMemory(uint64(cfg.ChunkSize)+1<<20))
	if err != nil {
		return nil, fmt.Errorf("preparing zstd decoder: %w", err)
	}
	return &codec{enc: enc, dec: dec}, nil
}

// pack fills in the stored form of a chunk and its digest.
func (c *codec) pack(j *job) (err error) {
	if c.enc == nil {
		j.store = append(j.store[:0], j.data...)
	} else if j.store, err = c.enc.encode(j.store, j.data); err != nil {
		return err
	}
	j.sum = sha256.Sum256(j.store)
	return nil
}

// unpack fills in the image data of a chunk of which the stored form is there.
func (c *codec) unpack(j *job) error {
	if c.dec == nil {
		j.data = append(j.data[:0], j.store...)
		return nil
	}
	out, err := c.dec.DecodeAll(j.store, j.data[:0])
	if err != nil {
		return fmt.Errorf("decompressing a spooled chunk: %w", err)
	}
	j.data = out
	return nil
}

func (c *codec) close() {
	if c.dec != nil {
		c.dec.Close()
	}
}
