package layer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/cache"
	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/format/zstdseek"
)

// parser plays the strict parser: it reads [0, n) in steps, compares it with the
// truth and returns pinned.
func (r *rig) parser(n int64, pinned ...chunk.Extent) func(context.Context, io.ReaderAt) ([]chunk.Extent, error) {
	return func(_ context.Context, image io.ReaderAt) ([]chunk.Extent, error) {
		for off := int64(0); off < n; off += 1000 {
			p := make([]byte, min(1000, n-off))
			got, err := image.ReadAt(p, off)
			if err != nil && err != io.EOF {
				return nil, err
			}
			if !bytes.Equal(p[:got], r.image[off:off+int64(got)]) {
				return nil, errors.New("the parser saw wrong bytes")
			}
		}
		return pinned, nil
	}
}

func TestPrepareWithHint(t *testing.T) {
	r := newRig(t, 64*testChunk)
	r.plan.PinnedHint = chunk.Extent{Len: 5 * testChunk}
	r.plan.Validate = r.parser(5*testChunk, chunk.Extent{Len: 5 * testChunk})
	l := r.open()
	before := r.blob.Requests()
	require.NoError(t, l.Prepare(t.Context()))
	require.EqualValues(t, 1, r.blob.Requests()-before)
	require.Equal(t, 5, r.checkResident(l))
	require.Zero(t, l.Stats().AskedBytes, "no kernel asked for it")
	require.NoError(t, l.Prepare(t.Context()))
	require.EqualValues(t, 1, r.blob.Requests()-before, "a second time costs nothing")
}

// TestPrepareWithShortHint: what the parser finds beyond the hint costs one more
// request, however many pieces it has.
func TestPrepareWithShortHint(t *testing.T) {
	r := newRig(t, 64*testChunk)
	r.plan.PinnedHint = chunk.Extent{Len: 1}
	r.plan.Validate = r.parser(testChunk, chunk.Extent{Off: 40 * testChunk, Len: 1}, chunk.Extent{Len: testChunk},
		chunk.Extent{}, chunk.Extent{Off: 20 * testChunk, Len: 2 * testChunk}, chunk.Extent{Off: 21 * testChunk, Len: 3})
	l := r.open()
	before := r.blob.Requests()
	require.NoError(t, l.Prepare(t.Context()))
	require.EqualValues(t, 2, r.blob.Requests()-before)
	require.Equal(t, 4, r.checkResident(l))
}

// TestPrepareWithoutHint reads metadata in long steps.
func TestPrepareWithoutHint(t *testing.T) {
	r := newRig(t, 256*testChunk) // 4 MiB
	r.plan.Validate = r.parser(100*testChunk, chunk.Extent{Len: 100 * testChunk})
	l := r.open()
	before := r.blob.Requests()
	require.NoError(t, l.Prepare(t.Context()))
	require.EqualValues(t, 2, r.blob.Requests()-before, "1.6 MiB of metadata in steps of 1 MiB")
}

// TestPrepareTakesPrefetchAlong: one request for metadata and what start-up
// reads first, but nobody waits for the latter.
func TestPrepareTakesPrefetchAlong(t *testing.T) {
	r := newRig(t, 64*testChunk)
	r.plan.PinnedHint = chunk.Extent{Len: 2 * testChunk}
	r.plan.Prefetch = chunk.Extent{Len: 10 * testChunk}
	r.plan.Validate = r.parser(testChunk, chunk.Extent{Len: testChunk})
	l := r.open()
	before := r.blob.Requests()
	require.NoError(t, l.Prepare(t.Context()))
	require.NoError(t, l.Warm(t.Context(), []chunk.Extent{r.plan.Prefetch}))
	require.EqualValues(t, 1, r.blob.Requests()-before)
	require.Equal(t, 10, r.checkResident(l))
}

func TestPrepareFails(t *testing.T) {
	refused := errors.New("the parser refuses")
	for name, tc := range map[string]struct {
		spoil func(r *rig)
		want  error
	}{
		"no parser": {func(r *rig) { r.plan.Validate = nil }, ErrUnchecked},
		"parser refuses": {func(r *rig) {
			r.plan.Validate = func(context.Context, io.ReaderAt) ([]chunk.Extent, error) { return nil, refused }
		}, refused},
		"registry fails": {func(r *rig) {
			r.blob.Gate = func(context.Context, []chunk.Extent) error { return io.ErrClosedPipe }
		}, io.ErrClosedPipe},
		"registry fails without a hint": {func(r *rig) {
			r.plan.PinnedHint = chunk.Extent{}
			r.blob.Gate = func(context.Context, []chunk.Extent) error { return io.ErrClosedPipe }
		}, io.ErrClosedPipe},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 16*testChunk)
			r.plan.PinnedHint = chunk.Extent{Len: testChunk}
			r.plan.Validate = r.parser(testChunk)
			tc.spoil(r)
			require.ErrorIs(t, r.open().Prepare(t.Context()), tc.want)
		})
	}
	r := newRig(t, 16*testChunk)
	r.plan.Validate = r.parser(0, chunk.Extent{Off: 100 * testChunk, Len: 1})
	require.ErrorContains(t, r.open().Prepare(t.Context()), "outside")
}

// TestPrepareCorruptMetadata: a flipped bit in the metadata is a typed error
// before the parser sees it.
func TestPrepareCorruptMetadata(t *testing.T) {
	r := newRig(t, 16*testChunk)
	r.blob.Mangle = func(e chunk.Extent, data []byte) []byte {
		if e == r.plan.Data.At(1).Blob {
			data[0] ^= 1
		}
		return data
	}
	r.plan.Validate = r.parser(4 * testChunk)
	var ce *chunk.CorruptError
	for _, hint := range []int64{0, 4 * testChunk} {
		r.dir = t.TempDir()
		r.plan.PinnedHint = chunk.Extent{Len: hint}
		require.ErrorAs(t, r.open().Prepare(t.Context()), &ce)
	}
}

// TestPrepareCancelled: giving up cancels the one batch.
func TestPrepareCancelled(t *testing.T) {
	r := newRig(t, 16*testChunk)
	r.plan.PinnedHint = chunk.Extent{Len: 4 * testChunk}
	r.plan.Validate = r.parser(testChunk)
	g := newGate()
	ended := make(chan error, 1)
	r.blob.Gate = func(ctx context.Context, es []chunk.Extent) error {
		err := g.hold(ctx, es)
		ended <- err
		return err
	}
	l := r.open()
	ctx, cancel := context.WithCancel(t.Context())
	out := make(chan error, 1)
	go func() { out <- l.Prepare(ctx) }()
	<-g.arrived
	cancel()
	require.ErrorIs(t, <-out, context.Canceled)
	require.ErrorIs(t, <-ended, context.Canceled)
}

// TestForeignLayer: metadata made here is not fetched, not parsed, and closed
// with the layer.
func TestForeignLayer(t *testing.T) {
	r := newRig(t, 4*testChunk)
	meta, err := os.CreateTemp(t.TempDir(), "")
	require.NoError(t, err)
	r.plan.Meta = meta
	r.conf.Meta = meta
	l := r.open()
	before := r.blob.Requests()
	require.NoError(t, l.Prepare(t.Context()))
	require.Equal(t, before, r.blob.Requests())
	require.Same(t, meta, l.Meta())
	require.NoError(t, l.Close(t.Context()))
	require.ErrorIs(t, meta.Close(), os.ErrClosed)
}

// TestEarly: index and metadata cost two requests that overlap, and nothing is
// fetched twice.
func TestEarly(t *testing.T) {
	r := newRig(t, 16*testChunk)
	end := r.plan.Data.At(3).Blob.End()
	r.desc.Annotations[chunk.LabelPinned] = chunk.FormatEnds(4*testChunk, end)
	before := len(r.blob.Log())
	e := StartEarly(t.Context(), r.blob, r.desc)
	plan, err := zstdseek.New().Open(t.Context(), e, r.desc)
	require.NoError(t, err)
	plan.Validate = r.parser(4*testChunk, chunk.Extent{Len: 4 * testChunk})
	r.plan, r.conf.Blob = plan, e
	l := r.open()
	require.NoError(t, l.Prepare(t.Context()))
	require.Len(t, r.blob.Log()[before:], 2)
	r.read(l, 3*testChunk, 4*testChunk)
	require.Len(t, r.blob.Log()[before:], 3, "what is not early is asked for")
	e.Release()
	r.read(l, 8*testChunk, testChunk)
	e.Release()
	require.Equal(t, 8, r.checkResident(l))
}

// TestEarlyIsOnlyAHint: absent, malformed, too long, or failing, the layer is
// read all the same.
func TestEarlyIsOnlyAHint(t *testing.T) {
	for _, label := range []string{"", "nonsense", "1:0", "1:99999999999", "4096:5"} {
		r := newRig(t, 16*testChunk)
		r.desc.Annotations[chunk.LabelPinned] = label
		e := StartEarly(t.Context(), r.blob, r.desc)
		r.conf.Blob = e
		r.read(r.open(), 0, 16*testChunk)
		e.Release()
	}
	r := newRig(t, 16*testChunk)
	r.desc.Annotations[chunk.LabelPinned] = chunk.FormatEnds(4*testChunk, r.plan.Data.At(3).Blob.End())
	failed := false
	r.blob.Gate = func(context.Context, []chunk.Extent) error {
		if !failed {
			failed = true
			return io.ErrClosedPipe
		}
		return nil
	}
	e := StartEarly(t.Context(), r.blob, r.desc)
	defer e.Release()
	<-e.done
	r.conf.Blob = e
	r.read(r.open(), 0, 2*testChunk)
}

// TestEarlyCorrupt: bytes that were corrupt when they were read early are asked
// for again.
func TestEarlyCorrupt(t *testing.T) {
	r := newRig(t, 16*testChunk)
	end := r.plan.Data.At(3).Blob.End()
	r.desc.Annotations[chunk.LabelPinned] = chunk.FormatEnds(4*testChunk, end)
	r.blob.Mangle = func(e chunk.Extent, data []byte) []byte {
		if e.Len == end {
			data[r.plan.Data.At(2).Blob.Off] ^= 1
		}
		return data
	}
	e := StartEarly(t.Context(), r.blob, r.desc)
	defer e.Release()
	r.conf.Blob = e
	l := r.open()
	before := r.blob.Requests()
	r.read(l, 0, 4*testChunk)
	require.EqualValues(t, 1, l.Stats().Corrupt)
	require.LessOrEqual(t, r.blob.Requests()-before, int64(2))
}

// TestEarlyGivesUp: a waiter's context and Release both end the wait.
func TestEarlyGivesUp(t *testing.T) {
	r := newRig(t, 16*testChunk)
	r.desc.Annotations[chunk.LabelPinned] = chunk.FormatEnds(testChunk, 100)
	g := newGate()
	r.blob.Gate = g.hold
	e := StartEarly(t.Context(), r.blob, r.desc)
	<-g.arrived
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := e.ReadExtents(ctx, []chunk.Extent{{Off: 0, Len: 10}}, func(int, io.Reader) error { return nil })
	require.ErrorIs(t, err, context.Canceled)
	e.Release()
}

// TestFullDiskIsTyped: a layer on a full disk fails the read with a typed error and
// keeps nothing that is not whole.
func TestFullDiskIsTyped(t *testing.T) {
	r := newRig(t, 64*testChunk)
	r.dir = smallDisk(t, "128k")
	l := r.open()
	require.ErrorIs(t, l.Ensure(t.Context(), 0, 64*testChunk), cache.ErrNoSpace)
	require.Less(t, r.checkResident(l), 8)
	require.NoError(t, l.Close(t.Context()))
}
