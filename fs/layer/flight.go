package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"
	"sync"
	"time"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// call is one chunk on its way. err is valid once done is closed.
type call struct {
	chunk int
	done  chan struct{}
	err   error
	batch *batch
	// waiters counts who waits for this chunk; guarded by Layer.mu.
	waiters int
}

// isDone reports whether the outcome is known.
func (c *call) isDone() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// batch is what one ReadExtents fetches: ascending chunks.
type batch struct {
	ctx    context.Context
	cancel context.CancelFunc
	kind   Kind
	calls  []*call
	begun  time.Time
	// waiters is the sum of those of the calls; guarded by Layer.mu.
	waiters int
}

// join returns the calls that bring the missing chunks of need, each with the
// caller counted as a waiter. Chunks on their way are joined; the others, and
// read-ahead, become a new batch, which is started.
func (l *Layer) join(need []span, kind Kind) ([]*call, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, fmt.Errorf("reading layer %s: %w", l.id, ErrClosed)
	}
	var wait []*call
	b := &batch{kind: kind, begun: time.Now()}
	last := -1 // of the chunks looked at, so that spans may touch in a chunk
	for _, s := range need {
		for i := max(s.first, last+1); i <= s.last; i++ {
			last = i
			if l.file.ResidentChunk(i) {
				continue
			}
			c := l.calls[i]
			if c == nil {
				c = l.claim(b, i)
			}
			c.waiters++
			c.batch.waiters++
			wait = append(wait, c)
		}
	}
	if len(b.calls) == 0 {
		return wait, nil
	}
	if kind == KindDemand {
		l.claimAhead(b)
		slices.SortFunc(b.calls, func(x, y *call) int { return x.chunk - y.chunk })
	}
	l.stats.batches.Add(1)
	for _, c := range b.calls {
		l.stats.fetched.Add(l.plan.Data.At(c.chunk).Blob.Len)
	}
	b.ctx, b.cancel = context.WithCancel(l.ctx)
	l.tasks.Go(func() { l.run(b) })
	return wait, nil
}

// claim adds missing chunk i to batch b. Needs mu.
func (l *Layer) claim(b *batch, i int) *call {
	c := &call{chunk: i, done: make(chan struct{}), batch: b}
	l.calls[i] = c
	b.calls = append(b.calls, c)
	return c
}

// claimAhead adds read-ahead to a batch of demanded chunks, as far as the
// allowance goes: first what follows, then what precedes, nearest first. Needs
// mu.
func (l *Layer) claimAhead(b *batch) {
	for _, c := range b.calls {
		l.stats.missed.Add(l.plan.Data.At(c.chunk).Data.Len)
	}
	used := func(i int) bool { return l.asked.any(l.plan.Data.At(i).Data) }
	have := func(i int) bool { return l.calls[i] != nil || l.file.ResidentChunk(i) }
	left := l.ahead.allowance(l.plan.Data, l.asked.bytes(), used)
	first, last := b.calls[0].chunk, b.calls[len(b.calls)-1].chunk
	want := l.ahead.miss(l.plan.Data, first, last, used)
	defer l.ahead.settle(l.plan.Data, last, have)
	claim := func(i int) bool {
		if have(i) {
			return true
		}
		n := l.plan.Data.At(i).Data.Len
		if left -= n; left < 0 {
			return false
		}
		l.claim(b, i)
		l.ahead.fetched(i, n)
		l.stats.missed.Add(n)
		l.stats.readAhead.Add(n)
		return true
	}
	for i := last + 1; i <= want.last; i++ {
		if !claim(i) {
			return
		}
	}
	for i := first - 1; i >= want.first; i-- {
		if !claim(i) {
			return
		}
	}
}

// leave ends the caller's wait for calls. When it gave up and nobody else waits
// for a batch, the batch is cancelled and its chunks are free to be fetched
// anew.
func (l *Layer) leave(calls []*call, gaveUp bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range calls {
		c.waiters--
		c.batch.waiters--
		if !gaveUp || c.batch.waiters > 0 {
			continue
		}
		c.batch.cancel()
		for _, other := range c.batch.calls {
			if l.calls[other.chunk] == other {
				delete(l.calls, other.chunk)
			}
		}
	}
}

// finish reports the outcome of a call to those who wait for it; only the first
// report counts.
func (l *Layer) finish(c *call, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.isDone() {
		return
	}
	c.err = err
	if l.calls[c.chunk] == c {
		delete(l.calls, c.chunk)
	}
	close(c.done)
}

// run fetches a batch, verifies and stores each chunk as soon as its bytes are
// there, and reports it. A chunk that stays corrupt, after what the registry
// client tried about it, is reported and the rest is asked for again without it.
func (l *Layer) run(b *batch) {
	defer b.cancel()
	left := b.calls
	for len(left) > 0 {
		bad, err := l.read(b, left)
		if err == nil {
			err = errors.New("the registry client left out a range")
		} else if l.ctx.Err() != nil {
			err = ErrClosed
		}
		var rest []*call
		for _, c := range left {
			if bad[c.chunk] != nil {
				l.finish(c, bad[c.chunk])
			} else if !c.isDone() {
				rest = append(rest, c)
			}
		}
		if len(rest) < len(left) && len(bad) > 0 {
			left = rest
			continue
		}
		for _, c := range rest {
			l.finish(c, fmt.Errorf("fetching chunk %d of layer %s: %w", c.chunk, l.id, err))
		}
		break
	}
	l.report(b)
	select {
	case l.whole <- struct{}{}:
	default:
	}
}

// read asks the registry client once for calls and finishes those that arrive.
// It returns the verdict on chunks that are corrupt, by number.
func (l *Layer) read(b *batch, calls []*call) (map[int]error, error) {
	es := make([]chunk.Extent, len(calls))
	for i, c := range calls {
		es[i] = l.plan.Data.At(c.chunk).Blob
	}
	var mu sync.Mutex
	bad := map[int]error{}
	err := l.blob.ReadExtents(b.ctx, es, func(i int, r io.Reader) error {
		c := calls[i]
		err := l.take(b.ctx, c.chunk, r)
		var ce *chunk.CorruptError
		if errors.As(err, &ce) {
			l.stats.corrupt.Add(1)
			mu.Lock()
			defer mu.Unlock()
			bad[c.chunk] = err
			return err
		}
		if err == nil {
			l.finish(c, nil)
		}
		return err
	})
	for _, c := range calls {
		if c.isDone() { // it was corrupt, and then it was not
			delete(bad, c.chunk)
		}
	}
	return bad, err
}

// take reads the stored bytes of chunk i from r, verifies them and puts their
// image data into the data file.
func (l *Layer) take(ctx context.Context, i int, r io.Reader) error {
	c := l.plan.Data.At(i)
	stored := buffer(c.Blob.Len)
	defer recycle(stored)
	if _, err := io.ReadFull(r, *stored); err != nil {
		return fmt.Errorf("reading stored bytes [%d, %d): %w", c.Blob.Off, c.Blob.End(), err)
	}
	select {
	case l.slots <- struct{}{}:
		defer func() { <-l.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	data := buffer(c.Data.Len + decodeSlack)
	defer recycle(data)
	decoded, err := l.plan.Decode((*data)[:0], *stored, c)
	if err != nil {
		return fmt.Errorf("decoding chunk %d of layer %s: %w", i, l.id, err)
	}
	return l.file.WriteChunk(i, decoded)
}

const (
	// decodeSlack is room that decoders may want beyond a chunk's image data.
	decodeSlack = 32
	// maxPooled is the longest buffer that is kept, in bytes.
	maxPooled = 4 << 20
)

// pools hold the buffers of all layers, pools[k] those of 1<<k bytes and the slack:
// a layer that nobody reads from keeps none, and a short buffer is not handed out
// and thrown away where a long one is needed.
var pools [bits.UintSize]sync.Pool // *[]byte

// class returns the k of the shortest buffers that hold n bytes.
func class(n int64) int { return bits.Len64(uint64(max(n-decodeSlack, 1) - 1)) }

// buffer returns n bytes with any contents.
func buffer(n int64) *[]byte {
	k := class(n)
	if n <= maxPooled+decodeSlack {
		if p, ok := pools[k].Get().(*[]byte); ok {
			*p = (*p)[:n]
			return p
		}
		b := make([]byte, n, 1<<k+decodeSlack)
		return &b
	}
	b := make([]byte, n)
	return &b
}

// recycle takes back what buffer made.
func recycle(p *[]byte) {
	if n := int64(cap(*p)); n <= maxPooled+decodeSlack {
		pools[class(n)].Put(p)
	}
}
