package formattest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/remote"
)

// Blob is a remote.Blob over bytes in memory. The knobs may be set before use
// only; the counters may be read at any time.
type Blob struct {
	data []byte
	id   digest.Digest

	// Gate, when set, is called before each request with the extents it is for
	// and can block it, fail it, or look at it.
	Gate func(ctx context.Context, es []chunk.Extent) error
	// Mangle, when set, may return other bytes for the extent e than data.
	Mangle func(e chunk.Extent, data []byte) []byte

	requests atomic.Int64
	bytes    atomic.Int64

	mu  sync.Mutex
	log [][]chunk.Extent
}

var _ remote.Blob = (*Blob)(nil)

// NewBlob returns a Blob over data, named by its SHA-256.
func NewBlob(data []byte) *Blob { return &Blob{data: data, id: digest.FromBytes(data)} }

// Digest returns the digest of the bytes that NewBlob was given.
func (b *Blob) Digest() digest.Digest { return b.id }

// Size returns the length of the blob in bytes.
func (b *Blob) Size() int64 { return int64(len(b.data)) }

// Requests returns how many requests were made.
func (b *Blob) Requests() int64 { return b.requests.Load() }

// Bytes returns how many bytes were asked for.
func (b *Blob) Bytes() int64 { return b.bytes.Load() }

// Log returns the extents of each request in the order they were made.
func (b *Blob) Log() [][]chunk.Extent {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([][]chunk.Extent(nil), b.log...)
}

// ReadAt is one request. See remote.Blob.
func (b *Blob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	e := chunk.Extent{Off: off, Len: int64(len(p))}
	data, err := b.request(ctx, []chunk.Extent{e})
	if err != nil {
		return 0, err
	}
	if n := copy(p, data[0]); n < len(p) {
		return 0, io.ErrUnexpectedEOF
	}
	return len(p), nil
}

// ReadExtents is one request, whose extents are handed to fn concurrently. See
// remote.Blob.
func (b *Blob) ReadExtents(ctx context.Context, es []chunk.Extent, fn func(i int, r io.Reader) error) error {
	data, err := b.request(ctx, es)
	if err != nil {
		return err
	}
	var g errgroup.Group
	for i := range es {
		g.Go(func() error { return fn(i, bytes.NewReader(data[i])) })
	}
	return g.Wait()
}

func (b *Blob) request(ctx context.Context, es []chunk.Extent) ([][]byte, error) {
	b.requests.Add(1)
	b.mu.Lock()
	b.log = append(b.log, append([]chunk.Extent(nil), es...))
	b.mu.Unlock()
	if b.Gate != nil {
		if err := b.Gate(ctx, es); err != nil {
			return nil, err
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	out := make([][]byte, len(es))
	end := int64(-1)
	for i, e := range es {
		if e.Off < 0 || e.Len <= 0 || e.End() > b.Size() || e.Off < end {
			return nil, fmt.Errorf("extent %+v is outside the blob or out of order", e)
		}
		end = e.End()
		b.bytes.Add(e.Len)
		out[i] = b.data[e.Off:e.End()]
		if b.Mangle != nil {
			out[i] = b.Mangle(e, bytes.Clone(out[i]))
		}
	}
	return out, nil
}
