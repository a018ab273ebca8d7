package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sync/errgroup"

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

// claimAhead adds read-ahead to a batch of demanded chunks. Needs mu.
func (l *Layer) claimAhead(b *batch) {
	var demanded int64
	for _, c := range b.calls {
		demanded += l.plan.Data.At(c.chunk).Data.Len
	}
	fetched := l.stats.missed.Add(demanded)
	first, last := b.calls[0].chunk, b.calls[len(b.calls)-1].chunk
	end := l.ahead.miss(l.plan.Data, first, last, l.asked.bytes(), fetched)
	for i := last + 1; i <= end; i++ {
		if !l.file.ResidentChunk(i) && l.calls[i] == nil {
			l.claim(b, i)
			n := l.plan.Data.At(i).Data.Len
			l.stats.missed.Add(n)
			l.stats.readAhead.Add(n)
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
	select {
	case <-c.done:
		return
	default:
	}
	c.err = err
	if l.calls[c.chunk] == c {
		delete(l.calls, c.chunk)
	}
	close(c.done)
}

// run fetches a batch, verifies and stores each chunk as soon as its bytes are
// there, and reports it.
func (l *Layer) run(b *batch) {
	defer b.cancel()
	es := make([]chunk.Extent, len(b.calls))
	for i, c := range b.calls {
		es[i] = l.plan.Data.At(c.chunk).Blob
	}
	var work errgroup.Group
	err := l.blob.ReadExtents(b.ctx, es, func(i int, r io.Reader) error {
		stored := l.buffer(es[i].Len)
		if _, err := io.ReadFull(r, *stored); err != nil {
			l.recycle(stored)
			return fmt.Errorf("reading stored bytes [%d, %d): %w", es[i].Off, es[i].End(), err)
		}
		select {
		case l.slots <- struct{}{}:
		case <-b.ctx.Done():
			l.recycle(stored)
			return b.ctx.Err()
		}
		work.Go(func() error {
			l.finish(b.calls[i], l.store(b.calls[i].chunk, *stored))
			<-l.slots
			l.recycle(stored)
			return nil
		})
		return nil
	})
	_ = work.Wait() // outcomes are in the calls
	if err == nil {
		err = errors.New("the registry client left out a range")
	} else if l.ctx.Err() != nil {
		err = ErrClosed
	}
	for _, c := range b.calls {
		l.finish(c, fmt.Errorf("fetching chunk %d of layer %s: %w", c.chunk, l.id, err))
	}
	l.report(b, es)
}

// store verifies the stored bytes of chunk i and puts its image data into the
// data file.
func (l *Layer) store(i int, stored []byte) error {
	c := l.plan.Data.At(i)
	data := l.buffer(c.Data.Len + decodeSlack)
	defer l.recycle(data)
	decoded, err := l.plan.Decode((*data)[:0], stored, c)
	if err != nil {
		var ce *chunk.CorruptError
		if errors.As(err, &ce) {
			l.stats.corrupt.Add(1)
		}
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

// buffer returns n bytes with any contents.
func (l *Layer) buffer(n int64) *[]byte {
	if p, ok := l.bufs.Get().(*[]byte); ok && int64(cap(*p)) >= n {
		*p = (*p)[:n]
		return p
	}
	b := make([]byte, n)
	return &b
}

func (l *Layer) recycle(p *[]byte) {
	if cap(*p) <= maxPooled {
		l.bufs.Put(p)
	}
}
