package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// Policy says how long and how often a read is tried again.
type Policy struct {
	// Budget is how long a read may go without a new byte before it fails;
	// 0 means 30 s. Every byte that arrives starts it anew.
	Budget time.Duration
	// First is the pause before the first retry; 0 means 100 ms. Pauses double
	// with jitter up to Max (0 means 5 s), unless a host names its own.
	First, Max time.Duration
	// Refetch is how often a range is asked for again because the caller found
	// that its bytes fail their digest; 0 means 2. The host that sent them goes to the
	// end of the line, so another host is asked where there is one.
	Refetch int
	// NotRanged is how often a range is asked for again when the whole blob
	// came instead; 0 means 2.
	NotRanged int
}

func (p Policy) withDefaults() Policy {
	if p.Budget <= 0 {
		p.Budget = 30 * time.Second
	}
	if p.First <= 0 {
		p.First = 100 * time.Millisecond
	}
	if p.Max <= 0 {
		p.Max = 5 * time.Second
	}
	p.Refetch = orDefault(p.Refetch, 2)
	p.NotRanged = orDefault(p.NotRanged, 2)
	return p
}

// Retry returns b with reads tried again while they fail with ErrUnavailable,
// within p's budget. A read of extents goes on with those not yet done. One exception
// to the rule that fn's error ends a read: a *chunk.CorruptError from the
// registry is answered by fetching that extent again, a bounded number of times.
func Retry(b Blob, p Policy) Blob { return &retrier{Blob: b, p: p.withDefaults()} }

type retrier struct {
	Blob
	p Policy
}

// ReadAt implements Blob.
func (r *retrier) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	done := 0
	t := r.start()
	for {
		n, err := r.Blob.ReadAt(ctx, p[done:], off+int64(done))
		done += n
		if err == nil {
			return done, nil
		}
		if err := t.pause(ctx, err, n > 0); err != nil {
			return done, err
		}
	}
}

// ReadExtents implements Blob.
func (r *retrier) ReadExtents(ctx context.Context, es []chunk.Extent, fn func(i int, r io.Reader) error) error {
	t := r.start()
	done := make([]bool, len(es)) // each is written by the one call that serves it
	left, ids := es, []int(nil)
	for {
		var verdict atomic.Pointer[error]
		err := r.Blob.ReadExtents(ctx, left, func(i int, rd io.Reader) error {
			if ids != nil {
				i = ids[i]
			}
			tr := &tracked{r: rd}
			err := fn(i, tr)
			if err == nil {
				done[i] = true
			} else if tr.err == nil {
				verdict.CompareAndSwap(nil, &err)
			}
			return err
		})
		if err == nil {
			return nil
		}
		before := len(left)
		left, ids = remaining(es, done)
		if v := verdict.Load(); v != nil {
			if err := t.refetch(ctx, *v); err != nil {
				return err
			}
		} else if err := t.pause(ctx, err, len(left) < before); err != nil {
			return err
		}
	}
}

// remaining returns the extents that are not done and their numbers.
func remaining(es []chunk.Extent, done []bool) ([]chunk.Extent, []int) {
	var left []chunk.Extent
	var ids []int
	for i, e := range es {
		if !done[i] {
			left, ids = append(left, e), append(ids, i)
		}
	}
	return left, ids
}

// tracked remembers whether a reader failed, which tells the transport's
// failures from the verdict of the function that read.
type tracked struct {
	r   io.Reader
	err error
}

func (t *tracked) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	if err != nil && err != io.EOF {
		t.err = err
	}
	return n, err
}

// tries is the state of one read that is tried again.
type tries struct {
	p         Policy
	pauses    *backoff.ExponentialBackOff
	deadline  time.Time
	refetched int
	notRanged int
}

func (r *retrier) start() *tries {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.Multiplier = r.p.First, r.p.Max, 2
	b.Reset()
	return &tries{p: r.p, pauses: b, deadline: time.Now().Add(r.p.Budget)}
}

// pause waits before the next try, or returns the error that ends the read.
func (t *tries) pause(ctx context.Context, err error, moved bool) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if !errors.Is(err, ErrUnavailable) {
		return err
	}
	if errors.Is(err, ErrNotRanged) {
		if t.notRanged++; t.notRanged > t.p.NotRanged {
			return err
		}
	}
	if moved {
		t.pauses.Reset()
		t.deadline = time.Now().Add(t.p.Budget)
	}
	d := t.pauses.NextBackOff()
	var status *HTTPError
	if errors.As(err, &status) {
		d = max(d, status.RetryAfter)
	}
	if time.Now().Add(d).After(t.deadline) {
		return fmt.Errorf("gave up after %s without data: %w", t.p.Budget, err)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

// refetch allows another try for bytes that failed their digest, or returns
// the caller's verdict.
func (t *tries) refetch(ctx context.Context, verdict error) error {
	var corrupt *chunk.CorruptError
	if !errors.As(verdict, &corrupt) || corrupt.Origin != chunk.OriginRegistry || ctx.Err() != nil {
		return verdict
	}
	if t.refetched++; t.refetched > t.p.Refetch {
		return verdict
	}
	return nil
}
