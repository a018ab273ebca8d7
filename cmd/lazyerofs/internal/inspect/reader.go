package inspect

import (
	"context"
	"fmt"
	"io"
	"sync"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/format"
	"github.com/lazyerofs/lazyerofs/fs/remote"
)

// keepChunks bounds the decoded chunks in memory. The parser reads metadata
// mostly forward, so few are enough.
const keepChunks = 64

// reader reads image data straight from the registry, a few chunks in memory
// and nothing on disk: looking at an image must not fill a cache.
type reader struct {
	ctx  context.Context
	blob remote.Blob
	plan *format.Plan

	mu     sync.Mutex // guards chunks against two fetches of the same chunk
	chunks *lru.Cache[int, []byte]
	// fetched counts the stored bytes that were asked for.
	fetched int64
}

func newReader(ctx context.Context, blob remote.Blob, plan *format.Plan) (*reader, error) {
	c, err := lru.New[int, []byte](keepChunks)
	if err != nil {
		return nil, fmt.Errorf("making room for chunks: %w", err)
	}
	return &reader{ctx: ctx, blob: blob, plan: plan, chunks: c}, nil
}

// ReadAt reads image data; io.EOF at its end.
func (r *reader) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		pos := off + int64(done)
		i := r.plan.Data.Find(pos)
		if i < 0 {
			return done, io.EOF
		}
		b, err := r.chunk(i)
		if err != nil {
			return done, err
		}
		done += copy(p[done:], b[pos-r.plan.Data.At(i).Data.Off:])
	}
	return done, nil
}

// chunk returns the verified image data of chunk i, and fetches what follows
// it together with it as far as it is metadata.
func (r *reader) chunk(i int) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if b, ok := r.chunks.Get(i); ok {
		return b, nil
	}
	var want []chunk.Extent
	for n := i; n < r.plan.Data.Len() && len(want) < keepChunks/2; n++ {
		c := r.plan.Data.At(n)
		if n > i && c.Data.Off >= r.plan.PinnedHint.End() {
			break
		}
		want = append(want, c.Blob)
		r.fetched += c.Blob.Len
	}
	var mu sync.Mutex
	err := r.blob.ReadExtents(r.ctx, want, func(n int, src io.Reader) error {
		c := r.plan.Data.At(i + n)
		stored, err := io.ReadAll(io.LimitReader(src, c.Blob.Len))
		if err != nil {
			return fmt.Errorf("reading chunk %d: %w", i+n, err)
		}
		b, err := r.plan.Decode(nil, stored, c)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		r.chunks.Add(i+n, b)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading image data: %w", err)
	}
	b, ok := r.chunks.Get(i)
	if !ok {
		return nil, fmt.Errorf("chunk %d did not arrive", i)
	}
	return b, nil
}
