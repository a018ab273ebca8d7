//go:build cgo && !purego

package differ

import (
	"fmt"

	"github.com/DataDog/zstd"
)

// ZstdEncoder names what makes zstd frames in this build. Another one makes other
// bytes of the same tar.
const ZstdEncoder = "libzstd 1.5.7"

// encoder makes zstd frames on one goroutine: libzstd, compiled in.
type encoder struct {
	ctx   zstd.Ctx
	level int
}

func newEncoder(cfg Config) (*encoder, error) {
	return &encoder{ctx: zstd.NewCtx(), level: cfg.Level}, nil
}

// encode returns the frame of src, with its content size and without a checksum, in
// dst if it has room.
func (e *encoder) encode(dst, src []byte) ([]byte, error) {
	out, err := e.ctx.CompressLevel(dst, src, e.level)
	if err != nil {
		return nil, fmt.Errorf("compressing a chunk: %w", err)
	}
	return out, nil
}
