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
//
// One read(2) is several reads here, one after another: the kernel splits its
// read-ahead and asks for each part that failed once more. So that its caller does
// not wait for as many budgets, reads get only probation for a while after one gave
// up, until a byte arrives.
func Retry(b Blob, p Policy) Blob { return &retrier{Blob: b, p: p.withDefaults()} }

// probation is the budget of reads after one that gave up: enough for a new
// connection and a new token over a bad line.
const probation = 5 * time.Second

type retrier struct {
	Blob
	p      Policy
	gaveUp atomic.Int64 // when a read last did, in Unix nanoseconds; 0: it delivers
}

// ReadAt implements Blob.
func (r *retrier) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	done := 0
	t := r.start()
	for {
		n, err := r.readAt(ctx, t, p[done:], off+int64(done))
		done += n
		if err == nil {
			return done, nil
		}
		if err := t.pause(ctx, err, n > 0); err != nil {
			return done, err
		}
	}
}

// readAt is one try. It reads an extent, since that shows what arrives when.
func (r *retrier) readAt(ctx context.Context, t *tries, p []byte, off int64) (int, error) {
	if len(p) == 0 {
		return r.Blob.ReadAt(ctx, p, off)
	}
	n := 0
	err := r.Blob.ReadExtents(t.attempt(ctx), []chunk.Extent{{Off: off, Len: int64(len(p))}}, func(_ int, rd io.Reader) (err error) {
		n, err = io.ReadFull(&tracked{r: rd, t: t}, p)
		return err
	})
	return n, err
}

// ReadExtents implements Blob.
func (r *retrier) ReadExtents(ctx context.Context, es []chunk.Extent, fn func(i int, r io.Reader) error) error {
	t := r.start()
	done := make([]bool, len(es)) // each is written by the one call that serves it
	left, ids := es, []int(nil)
	for {
		verdict, err := r.readExtents(ctx, t, left, func(i int, rd io.Reader) error {
			if ids != nil {
				i = ids[i]
			}
			err := fn(i, rd)
			if err == nil {
				done[i] = true
			}
			return err
		})
		if err == nil {
			return nil
		}
		before := len(left)
		left, ids = remaining(es, done)
		if verdict != nil {
			if err := t.refetch(ctx, verdict); err != nil {
				return err
			}
		} else if err := t.pause(ctx, err, len(left) < before); err != nil {
			return err
		}
	}
}

// readExtents is one try. verdict is fn's error, unless reading failed.
func (r *retrier) readExtents(ctx context.Context, t *tries, es []chunk.Extent, fn func(i int, r io.Reader) error) (verdict, err error) {
	var own atomic.Pointer[error]
	err = r.Blob.ReadExtents(t.attempt(ctx), es, func(i int, rd io.Reader) error {
		tr := &tracked{r: rd, t: t}
		err := fn(i, tr)
		if err != nil && tr.err == nil {
			own.CompareAndSwap(nil, &err)
		}
		return err
	})
	if v := own.Load(); v != nil {
		verdict = *v
	}
	return verdict, err
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
// failures from the verdict of the function that read, and notes what arrives.
type tracked struct {
	r   io.Reader
	t   *tries
	err error
}

func (t *tracked) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	if n > 0 {
		t.t.arrived()
	}
	if err != nil && err != io.EOF {
		t.err = err
	}
	return n, err
}

// tries is the state of one read that is tried again.
type tries struct {
	r         *retrier
	pauses    *backoff.ExponentialBackOff
	budget    time.Duration
	deadline  atomic.Int64 // when the budget is used up, in Unix nanoseconds
	refetched int
	notRanged int
}

func (r *retrier) start() *tries {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.Multiplier = r.p.First, r.p.Max, 2
	b.Reset()
	t := &tries{r: r, pauses: b, budget: r.p.Budget}
	if at := r.gaveUp.Load(); at != 0 && time.Since(time.Unix(0, at)) < r.p.Budget {
		t.budget = min(t.budget, probation)
	}
	t.deadline.Store(time.Now().Add(t.budget).UnixNano())
	return t
}

// arrived notes a byte: the budget starts anew. It is called from several
// goroutines.
func (t *tries) arrived() {
	t.r.gaveUp.Store(0)
	t.deadline.Store(time.Now().Add(t.r.p.Budget).UnixNano())
}

// left is how much of the budget there is.
func (t *tries) left() time.Duration { return time.Until(time.Unix(0, t.deadline.Load())) }

// patienceKey is the context key under which one try finds its tries.
type patienceKey struct{}

// attempt returns the context of one try. Its requests wait no longer than the
// budget for a host that takes them and never answers; a wait for a free slot is
// nobody's failure and does not count.
func (t *tries) attempt(ctx context.Context) context.Context {
	return context.WithValue(ctx, patienceKey{}, t)
}

// within cuts the limits of one request to what is left of the budget of the read
// that ctx belongs to, if any.
func (t Timeouts) within(ctx context.Context) Timeouts {
	if read, ok := ctx.Value(patienceKey{}).(*tries); ok {
		t.Header = min(t.Header, max(read.left(), time.Millisecond))
		t.Progress = min(t.Progress, read.budget)
	}
	return t
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
		if t.notRanged++; t.notRanged > t.r.p.NotRanged {
			return err
		}
	}
	if moved {
		t.pauses.Reset()
	}
	d := t.pauses.NextBackOff()
	var status *HTTPError
	if errors.As(err, &status) {
		d = max(d, status.RetryAfter)
	}
	if d > t.left() {
		t.r.gaveUp.Store(time.Now().UnixNano())
		return fmt.Errorf("gave up after %s without data: %w", t.budget, err)
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
	if t.refetched++; t.refetched > t.r.p.Refetch {
		return verdict
	}
	return nil
}
