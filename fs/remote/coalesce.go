package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// Coalescing says how extents become requests.
type Coalescing struct {
	// MaxGap is how many unwanted bytes may be fetched to save a request;
	// 0 means 32 KiB: at 10 ms and 12 MB/s a round trip costs as much as 120 KB.
	MaxGap int64
	// MaxRequest bounds one request in bytes; 0 means 8 MiB. Longer runs become several
	// requests that go on at once. A single extent is never cut.
	MaxRequest int64
	// Parallel is how many requests of one read go on at once; 0 means 8.
	Parallel int
}

func (c Coalescing) withDefaults() Coalescing {
	if c.MaxGap <= 0 {
		c.MaxGap = 32 << 10
	}
	if c.MaxRequest <= 0 {
		c.MaxRequest = 8 << 20
	}
	c.Parallel = orDefault(c.Parallel, 8)
	return c
}

// Coalesce returns b with neighbouring extents read in one request and long
// ranges in several requests at once. A request that fails with ErrUnavailable does not
// stop its siblings, so that a retry has only the rest to do.
func Coalesce(b Blob, c Coalescing) Blob { return &coalescer{Blob: b, c: c.withDefaults()} }

type coalescer struct {
	Blob
	c Coalescing
}

// ReadAt implements Blob. The count on error is the length of the part that
// is whole from the start of p.
func (c *coalescer) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	piece := c.c.MaxRequest
	if int64(len(p)) <= piece {
		return c.Blob.ReadAt(ctx, p, off)
	}
	n := int((int64(len(p)) + piece - 1) / piece)
	got := make([]int, n)
	err := fanOut(ctx, n, c.c.Parallel, func(ctx context.Context, i int) error {
		lo := int64(i) * piece
		hi := min(lo+piece, int64(len(p)))
		k, err := c.Blob.ReadAt(ctx, p[lo:hi], off+lo)
		got[i] = k
		return err
	})
	whole := 0
	for i, k := range got {
		whole += k
		if int64(k) < piece && i < n-1 {
			break
		}
	}
	return whole, err
}

// ReadExtents implements Blob.
func (c *coalescer) ReadExtents(ctx context.Context, es []chunk.Extent, fn func(i int, r io.Reader) error) error {
	if err := checkExtents(es, c.Size()); err != nil {
		return err
	}
	runs := planRuns(es, c.c)
	return fanOut(ctx, len(runs), c.c.Parallel, func(ctx context.Context, k int) error {
		r := runs[k]
		whole := []chunk.Extent{{Off: es[r.first].Off, Len: es[r.last].End() - es[r.first].Off}}
		return c.Blob.ReadExtents(ctx, whole, func(_ int, rd io.Reader) error {
			return deliver(es, r, rd, fn)
		})
	})
}

// run is a range of extents [first, last] that one request serves.
type run struct{ first, last int }

// planRuns groups extents that lie close together.
func planRuns(es []chunk.Extent, c Coalescing) []run {
	var runs []run
	for i, e := range es {
		if k := len(runs) - 1; k >= 0 {
			start, end := es[runs[k].first].Off, es[runs[k].last].End()
			if e.Off-end <= c.MaxGap && e.End()-start <= c.MaxRequest {
				runs[k].last = i
				continue
			}
		}
		runs = append(runs, run{i, i})
	}
	return runs
}

// deliver cuts the bytes of a run into its extents.
func deliver(es []chunk.Extent, r run, rd io.Reader, fn func(i int, r io.Reader) error) error {
	at := es[r.first].Off
	for i := r.first; i <= r.last; i++ {
		if _, err := io.CopyN(io.Discard, rd, es[i].Off-at); err != nil {
			return fmt.Errorf("skipping to byte %d: %w", es[i].Off, err)
		}
		part := &io.LimitedReader{R: rd, N: es[i].Len}
		if err := fn(i, part); err != nil {
			return err
		}
		if i == r.last {
			break
		}
		// fn need not read to the end; the next extent starts behind it.
		if _, err := io.CopyN(io.Discard, rd, part.N); err != nil {
			return fmt.Errorf("skipping to byte %d: %w", es[i].End(), err)
		}
		at = es[i].End()
	}
	return nil
}

// fanOut runs f for 0..n-1, at most parallel at once. An error that is not
// ErrUnavailable cancels the others and is the one returned; otherwise it is
// the first.
func fanOut(ctx context.Context, n, parallel int, f func(ctx context.Context, i int) error) error {
	if n == 1 {
		return f(ctx, 0)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		wg          sync.WaitGroup
		mu          sync.Mutex
		first, hard error
		slots       = make(chan struct{}, parallel)
	)
	for i := range n {
		slots <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-slots }()
			err := f(ctx, i)
			if err == nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if first == nil {
				first = err
			}
			if hard == nil && !errors.Is(err, ErrUnavailable) && ctx.Err() == nil {
				hard = err
				cancel()
			}
		})
	}
	wg.Wait()
	if hard != nil {
		return hard
	}
	if first == nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return first
}
