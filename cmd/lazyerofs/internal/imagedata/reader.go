package imagedata

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/format"
	"github.com/lazyerofs/lazyerofs/fs/remote"
)

const (
	// keepBytes bounds the decoded chunks in memory; of chunks that are larger,
	// there are two.
	keepBytes = 32 << 20
	// windowBytes is how much image data is fetched at once when a reader goes
	// forward, or reads metadata.
	windowBytes = 8 << 20
)

// Reader reads image data straight from the blob: looking at an image must not
// fill a cache. It is safe for concurrent use, one fetch at a time.
type Reader struct {
	ctx  context.Context
	blob remote.Blob
	plan *format.Plan

	mu    sync.Mutex // guards what follows, and against two fetches of the same chunk
	kept  map[int][]byte
	order []int // of kept, the oldest first
	bytes int64 // in kept
	last  int   // the last chunk that was read
	// fetched counts the stored bytes that were asked for.
	fetched int64
}

// NewReader returns a Reader of the image data that plan locates in blob. ctx
// ends its reads.
func NewReader(ctx context.Context, blob remote.Blob, plan *format.Plan) *Reader {
	return &Reader{ctx: ctx, blob: blob, plan: plan, kept: map[int][]byte{}, last: -1}
}

// Fetched returns how many stored bytes were asked for.
func (r *Reader) Fetched() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fetched
}

// ReadAt reads image data; io.EOF at its end.
func (r *Reader) ReadAt(p []byte, off int64) (int, error) {
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

// chunk returns the verified image data of chunk i.
func (r *Reader) chunk(i int) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	forward := i == r.last+1 && i > 0
	r.last = i
	if b, ok := r.kept[i]; ok {
		return b, nil
	}
	if err := r.fetch(i, r.window(i, forward)); err != nil {
		return nil, fmt.Errorf("reading image data: %w", err)
	}
	b, ok := r.kept[i]
	if !ok {
		return nil, fmt.Errorf("chunk %d did not arrive", i)
	}
	return b, nil
}

// window returns the end of the chunks that are fetched with chunk i: of
// metadata, and of a reader that goes forward, those that follow.
func (r *Reader) window(i int, forward bool) int {
	first := r.plan.Data.At(i)
	n := i + 1
	for ; n < r.plan.Data.Len(); n++ {
		c := r.plan.Data.At(n)
		_, have := r.kept[n]
		if have || c.Data.End()-first.Data.Off > windowBytes || (!forward && c.Data.Off >= r.plan.PinnedHint.End()) {
			break
		}
	}
	return n
}

// fetch brings the chunks [i, end) into memory.
func (r *Reader) fetch(i, end int) error {
	want := make([]chunk.Extent, 0, end-i)
	for n := i; n < end; n++ {
		c := r.plan.Data.At(n)
		want = append(want, c.Blob)
		r.fetched += c.Blob.Len
	}
	var mu sync.Mutex
	got := make([][]byte, len(want))
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
		got[n] = b
		return nil
	})
	if err != nil {
		return err
	}
	for n := len(got) - 1; n >= 0; n-- { // the chunk that is wanted now is the last to go
		r.keep(i+n, got[n])
	}
	return nil
}

// keep remembers a chunk and forgets the oldest ones for it.
func (r *Reader) keep(i int, b []byte) {
	if _, ok := r.kept[i]; ok || b == nil {
		return
	}
	r.kept[i] = b
	r.order = append(r.order, i)
	r.bytes += int64(len(b))
	for r.bytes > keepBytes && len(r.order) > 2 {
		r.bytes -= int64(len(r.kept[r.order[0]]))
		delete(r.kept, r.order[0])
		r.order = slices.Delete(r.order, 0, 1)
	}
}
