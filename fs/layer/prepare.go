package layer

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// prepareWindow is how much image data a read of the strict parser fetches at
// least, in bytes, when no hint said how much metadata there is.
const prepareWindow = 1 << 20

// fillBatch is how much image data the background fill fetches in one batch, in
// bytes: a read that comes meanwhile shares the line with no more than that.
const fillBatch = 4 << 20

// ErrUnchecked marks a layer whose format has no strict parser for metadata
// that came from outside: it must not be mounted.
var ErrUnchecked = errors.New("layer has metadata that nothing checks")

// Prepare makes the layer ready to be mounted: it fetches what is probably
// metadata in one request, together with what start-up reads first, runs the
// strict parser, and makes every range resident that the parser found the
// kernel to read without asking. It does not wait for what start-up reads.
func (l *Layer) Prepare(ctx context.Context) error {
	if l.plan.Meta != nil {
		return nil // made on this node
	}
	if l.plan.Validate == nil {
		return fmt.Errorf("preparing layer %s: %w", l.id, ErrUnchecked)
	}
	if err := l.prepareHinted(ctx); err != nil {
		return fmt.Errorf("preparing layer %s: %w", l.id, err)
	}
	pinned, err := l.plan.Validate(ctx, &imageReader{ctx, l})
	if err != nil {
		return fmt.Errorf("preparing layer %s: %w", l.id, err)
	}
	need, err := l.spans(pinned)
	if err != nil {
		return fmt.Errorf("preparing layer %s: %w", l.id, err)
	}
	if err := l.fetch(ctx, need, KindPrepare); err != nil {
		return fmt.Errorf("preparing layer %s: %w", l.id, err)
	}
	return nil
}

// prepareHinted starts one batch for the pinned and the prefetch hint and waits
// for the first only.
func (l *Layer) prepareHinted(ctx context.Context) error {
	pinned, err := l.spans([]chunk.Extent{l.plan.PinnedHint})
	if err != nil || len(pinned) == 0 {
		return err
	}
	early, err := l.spans([]chunk.Extent{l.plan.PinnedHint, l.plan.Prefetch})
	if err != nil {
		return err
	}
	calls, err := l.join(early, KindPrepare)
	if err != nil {
		return err
	}
	err = l.fetch(ctx, pinned, KindPrepare)
	l.leave(calls, ctx.Err() != nil)
	return err
}

// spans returns the chunks of extents, in order; empty extents are left out.
func (l *Layer) spans(es []chunk.Extent) ([]span, error) {
	es = slices.Clone(es)
	slices.SortFunc(es, func(a, b chunk.Extent) int { return int(min(max(a.Off-b.Off, -1), 1)) })
	var out []span
	for _, e := range es {
		if e.Len == 0 {
			continue
		}
		first, last, err := l.chunks(e)
		if err != nil {
			return nil, err
		}
		out = append(out, span{first, last})
	}
	return out, nil
}

// imageReader is the image as the strict parser reads it. What it asks for is
// no kernel's wish and does not count as asked.
type imageReader struct {
	ctx context.Context
	l   *Layer
}

// ReadAt reads image data, fetching at least prepareWindow where it is missing.
func (r *imageReader) ReadAt(p []byte, off int64) (int, error) {
	return r.l.readAt(r.ctx, p, off, func(ctx context.Context, off, n int64) error {
		if r.l.file.Resident(off, n) {
			return nil
		}
		first, last, err := r.l.chunks(chunk.Extent{Off: off, Len: max(n, prepareWindow)})
		if err != nil {
			return err
		}
		return r.l.fetch(ctx, []span{{first, last}}, KindPrepare)
	})
}

// Warm makes ranges of image data resident ahead of need, in one batch.
func (l *Layer) Warm(ctx context.Context, es []chunk.Extent) error {
	need, err := l.spans(es)
	if err != nil {
		return fmt.Errorf("warming layer %s: %w", l.id, err)
	}
	return l.fetch(ctx, need, KindWarm)
}

// Fill makes the whole layer resident, from its start, in batches that wait
// while any read waits for the network. The first error ends it; what has
// arrived stays.
func (l *Layer) Fill(ctx context.Context) error {
	n := l.plan.Data.Len()
	for first := 0; first < n; {
		if l.file.ResidentChunk(first) {
			first++
			continue
		}
		last, left := first, int64(fillBatch)
		for left -= l.plan.Data.At(last).Data.Len; last+1 < n; last++ {
			if left -= l.plan.Data.At(last + 1).Data.Len; left < 0 {
				break
			}
		}
		if err := l.awaitIdle(ctx); err != nil {
			return fmt.Errorf("filling layer %s: %w", l.id, err)
		}
		if err := l.fetch(ctx, []span{{first, last}}, KindFill); err != nil {
			return fmt.Errorf("filling layer %s: %w", l.id, err)
		}
		first = last + 1
	}
	return nil
}
