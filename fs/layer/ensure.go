package layer

import (
	"context"
	"fmt"
	"io"

	"github.com/lazyerofs/lazyerofs/fs/cache"
	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// Ensure makes image data [off, off+n) present and verified in the data file.
// Corrupt bytes give a *chunk.CorruptError, a full disk cache.ErrNoSpace, a
// registry that does not deliver the error of its Blob. When ctx ends first the
// fetch goes on for whoever else waits for it.
func (l *Layer) Ensure(ctx context.Context, off, n int64) error {
	if l.Resident(off, n) {
		return nil
	}
	first, last, err := l.chunks(chunk.Extent{Off: off, Len: n})
	if err != nil {
		return err
	}
	return l.fetch(ctx, []span{{first, last}}, KindDemand)
}

// chunks returns the numbers of the first and the last chunk of a range of
// image data that is not empty. What lies after the image's end is cut off.
func (l *Layer) chunks(e chunk.Extent) (first, last int, err error) {
	size := l.file.Size()
	if e.Off < 0 || e.Len <= 0 || e.Off >= size {
		return 0, 0, fmt.Errorf("range [%d, +%d) is outside layer %s of %d bytes", e.Off, e.Len, l.id, size)
	}
	end := size - 1
	if e.Len-1 < end-e.Off {
		end = e.Off + e.Len - 1
	}
	return l.plan.Data.Find(e.Off), l.plan.Data.Find(end), nil
}

// ReadAt reads image data, fetching what is missing. Like an io.ReaderAt it
// gives io.EOF at the image's end.
func (l *Layer) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return l.readAt(ctx, p, off, l.Ensure)
}

func (l *Layer) readAt(ctx context.Context, p []byte, off int64, ensure func(context.Context, int64, int64) error) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("reading layer %s at %d: negative offset", l.id, off)
	}
	size := l.file.Size()
	if off >= size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > size-off {
		p, eof = p[:size-off], io.EOF
	}
	if len(p) == 0 {
		return 0, eof
	}
	if err := ensure(ctx, off, int64(len(p))); err != nil {
		return 0, err
	}
	if n, err := l.file.ReadAt(p, off); n < len(p) {
		return n, fmt.Errorf("reading layer %s at %d: %w", l.id, off, err)
	}
	return len(p), eof
}

// span is a run of chunks, both ends included.
type span struct{ first, last int }

// fetch waits until every chunk of need is resident, fetching in one batch what
// nobody fetches yet. A miss of KindDemand may add read-ahead to the batch, for
// which nobody waits.
func (l *Layer) fetch(ctx context.Context, need []span, kind Kind) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if kind == KindDemand {
		l.beginDemand()
		defer l.endDemand()
	}
	wait, err := l.join(need, kind)
	if err != nil {
		return err
	}
	for i, c := range wait {
		select {
		case <-c.done:
			if c.err != nil {
				l.leave(wait[i:], false)
				return c.err
			}
		case <-ctx.Done():
			l.leave(wait[i:], true)
			return fmt.Errorf("waiting for chunk %d of layer %s: %w", c.chunk, l.id, ctx.Err())
		}
		l.leave(wait[i:i+1], false)
		if !l.file.ResidentChunk(c.chunk) {
			return fmt.Errorf("chunk %d of layer %s: its data did not stay on disk: %w", c.chunk, l.id, cache.ErrNotResident)
		}
	}
	return nil
}

// beginDemand and endDemand keep idle, for which background work waits.
func (l *Layer) beginDemand() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.demand == 0 {
		l.idle = make(chan struct{})
	}
	l.demand++
}

func (l *Layer) endDemand() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.demand--; l.demand == 0 {
		close(l.idle)
	}
}

// awaitIdle returns once no read waits for the network.
func (l *Layer) awaitIdle(ctx context.Context) error {
	l.mu.Lock()
	idle := l.idle
	l.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
