package cache

import (
	"context"
	"fmt"
	"io"

	digest "github.com/opencontainers/go-digest"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// verifyBuffer is how many bytes Verify reads between two looks at its context.
const verifyBuffer = 1 << 20

// Verify reads a complete layer through the File's own descriptor and compares
// the digest of image data followed by tail with want. Success is remembered on
// disk. A difference is a *chunk.CorruptError, an incomplete layer
// ErrNotResident.
func (f *File) Verify(ctx context.Context, want digest.Digest, tail []byte) error {
	if err := want.Validate(); err != nil {
		return fmt.Errorf("verifying %s: %w", f.name, err)
	}
	if !f.Resident(0, f.id.size) {
		return fmt.Errorf("verifying %s: %w", f.name, ErrNotResident)
	}
	v := want.Verifier()
	buf := make([]byte, verifyBuffer)
	for r := io.NewSectionReader(f.data, 0, f.id.size); ; {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("verifying %s: %w", f.name, err)
		}
		n, err := r.Read(buf)
		v.Write(buf[:n]) //nolint:errcheck // a hash never fails
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("verifying %s: %w", f.name, err)
		}
	}
	v.Write(tail) //nolint:errcheck // a hash never fails
	if !v.Verified() {
		return &chunk.CorruptError{
			Origin: chunk.OriginDisk, What: "complete layer " + f.name, Reason: "the digest of its image data is not " + want.String(),
		}
	}
	f.verified.Store(true)
	return f.Flush(ctx)
}

// Verified reports whether Verify has succeeded for this layer, in this process
// or before it.
func (f *File) Verified() bool { return f.verified.Load() }
