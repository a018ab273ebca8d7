package layer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/remote"
)

// maxEarly bounds what a label can make us read ahead of the index, in bytes.
const maxEarly = 16 << 20

// Early is a Blob whose start is being read before anybody knows the chunks in
// it, so that index and metadata cost one round trip together instead of two.
// It may be used in place of its Blob everywhere and for ever.
type Early struct {
	remote.Blob

	cancel context.CancelFunc
	done   chan struct{}

	mu   sync.Mutex
	data []byte // what was read, nil once released; valid after done
	end  int64
}

// StartEarly begins to read the range of blob that desc's LabelPinned names,
// when it does and the range is not too long. The label is a hint: what it
// fetches is held against the index like anything else. The caller ends it with
// Release.
func StartEarly(ctx context.Context, blob remote.Blob, desc ocispec.Descriptor) *Early {
	ctx, cancel := context.WithCancel(ctx)
	e := &Early{Blob: blob, cancel: cancel, done: make(chan struct{})}
	_, end, err := chunk.ParseEnds(desc.Annotations[chunk.LabelPinned])
	if err != nil || end <= 0 || end > min(blob.Size(), maxEarly) {
		close(e.done)
		return e
	}
	e.end = end
	go func() {
		defer close(e.done)
		buf := make([]byte, end)
		if _, err := blob.ReadAt(ctx, buf, 0); err != nil {
			return // whoever needs the range asks for it again and gets the error
		}
		e.mu.Lock()
		e.data = buf
		e.mu.Unlock()
	}()
	return e
}

// Release gives the memory back, or ends the read if it still goes on, and
// waits for that. From then on the Early only passes everything on.
func (e *Early) Release() {
	e.cancel()
	<-e.done
	e.mu.Lock()
	defer e.mu.Unlock()
	e.data = nil
}

// held returns what was read once it is there.
func (e *Early) held(ctx context.Context) ([]byte, error) {
	select {
	case <-e.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.data, nil
}

// ReadExtents serves extents inside the early range from memory, and all others
// from the Blob at the same time. See remote.Blob.
func (e *Early) ReadExtents(ctx context.Context, es []chunk.Extent, fn func(i int, r io.Reader) error) error {
	n := 0 // es is sorted: the first n are early
	for n < len(es) && es[n].End() <= e.end {
		n++
	}
	if n == 0 {
		return e.Blob.ReadExtents(ctx, es, fn)
	}
	g, ctx := errgroup.WithContext(ctx)
	if n < len(es) {
		g.Go(func() error {
			return e.Blob.ReadExtents(ctx, es[n:], func(i int, r io.Reader) error { return fn(n+i, r) })
		})
	}
	g.Go(func() error { return e.fromMemory(ctx, es[:n], fn) })
	return g.Wait()
}

// fromMemory serves extents from what was read early. From the first one that
// is missing or corrupt on, the Blob is asked again: it may know another host.
func (e *Early) fromMemory(ctx context.Context, es []chunk.Extent, fn func(i int, r io.Reader) error) error {
	data, err := e.held(ctx)
	if err != nil {
		return err
	}
	for i, x := range es {
		if data != nil {
			err = fn(i, bytes.NewReader(data[x.Off:x.End()]))
		}
		var ce *chunk.CorruptError
		if data == nil || errors.As(err, &ce) {
			return e.Blob.ReadExtents(ctx, es[i:], func(k int, r io.Reader) error { return fn(i+k, r) })
		}
		if err != nil {
			return err
		}
	}
	return nil
}
