package remote

import (
	"context"
	"io"

	digest "github.com/opencontainers/go-digest"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// Blob is a registry blob that is read in ranges. All methods are safe for
// concurrent use. Offsets and lengths are in the blob's own address space.
//
// A read gives all the bytes asked for or an error, never fewer. The bytes are
// not verified: only the caller knows the digest of a range.
type Blob interface {
	// Digest is the digest that the manifest gives the blob.
	Digest() digest.Digest
	// Size is the blob's length in bytes as the manifest gives it.
	Size() int64
	// ReadAt fills p from off. It returns len(p) and nil, or an error.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	// ReadExtents reads the extents es, which are sorted and do not overlap, in
	// as few and as concurrent requests as pay, and calls fn once for each with
	// its number in es and exactly its bytes. fn may be called from several
	// goroutines at once, in any order, and again for the same extent after a
	// transport error: it must be idempotent. An error from fn ends the read and
	// is returned as it is; only the retry decorator answers a *chunk.CorruptError
	// from the registry by fetching that extent again. r is valid only during the
	// call, and fn must not read from a blob meanwhile.
	ReadExtents(ctx context.Context, es []chunk.Extent, fn func(i int, r io.Reader) error) error
}
