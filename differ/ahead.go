package differ

import (
	"context"
	"hash"
	"io"
	"sync"
)

const (
	aheadLen  = 256 << 10 // bytes that are handed on at once
	aheadMost = 8         // times that, on the way or in use
)

// ahead reads a stream in a goroutine of its own and digests it in another, so
// that decompressing, digesting and what is done with the bytes have a core each.
type ahead struct {
	ctx   context.Context
	free  chan *gulp
	ready chan *gulp
	halt  chan struct{}
	ends  sync.WaitGroup
	cur   *gulp
	at    int
	err   error // of the stream, once its bytes are used up
}

// gulp is what was read at once.
type gulp struct {
	buf []byte
	n   int
	err error // behind the n bytes
}

// readAhead starts reading r, which is nobody else's until close has returned.
// sum, which may be nil, has seen the whole stream when Read returns its end.
func readAhead(ctx context.Context, r io.Reader, sum hash.Hash) *ahead {
	a := &ahead{
		ctx:   ctx,
		free:  make(chan *gulp, aheadMost),
		ready: make(chan *gulp, aheadMost),
		halt:  make(chan struct{}),
	}
	for range aheadMost {
		a.free <- &gulp{}
	}
	filled := make(chan *gulp, aheadMost)
	a.ends.Go(func() {
		defer close(filled)
		a.fill(r, filled)
	})
	a.ends.Go(func() {
		defer close(a.ready)
		for g := range filled {
			if sum != nil {
				sum.Write(g.buf[:g.n])
			}
			a.ready <- g // has room for all
		}
	})
	return a
}

// fill reads until the stream ends or close is called.
func (a *ahead) fill(r io.Reader, to chan<- *gulp) {
	for {
		var g *gulp
		select {
		case g = <-a.free:
		case <-a.halt:
			return
		}
		if g.buf == nil {
			g.buf = make([]byte, aheadLen)
		}
		g.n, g.err = 0, nil
		for g.n < len(g.buf) && g.err == nil {
			var n int
			n, g.err = r.Read(g.buf[g.n:])
			g.n += n
		}
		end := g.err != nil // to may not be looked at after it was sent
		to <- g             // has room for all
		if end {
			return
		}
	}
}

// Read implements io.Reader. It ends early when the context does, or after stop.
func (a *ahead) Read(p []byte) (int, error) {
	if err := a.ctx.Err(); err != nil {
		return 0, err
	}
	for a.cur == nil || a.at == a.cur.n {
		if a.err != nil {
			return 0, a.err
		}
		if a.cur != nil {
			a.free <- a.cur // has room for all
			a.cur = nil
		}
		select {
		case g, ok := <-a.ready:
			if !ok {
				return 0, io.ErrClosedPipe
			}
			a.cur, a.at, a.err = g, 0, g.err
		case <-a.ctx.Done():
			return 0, a.ctx.Err()
		case <-a.halt:
			return 0, io.ErrClosedPipe
		}
	}
	n := copy(p, a.cur.buf[a.at:a.cur.n])
	a.at += n
	return n, nil
}

// stop tells the goroutines to end. It is called once, by close or before it.
func (a *ahead) stop() { close(a.halt) }

// close ends the goroutines. It waits for a Read of the stream that has begun.
func (a *ahead) close() {
	a.stop()
	a.ends.Wait()
}
