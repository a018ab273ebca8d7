package layer

import (
	"context"
	"errors"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// await yields until cond holds: what it waits for is another goroutine's next
// step, which nothing else announces.
func await(cond func() bool) {
	for !cond() {
		runtime.Gosched()
	}
}

func ensure(ctx context.Context, l *Layer, off, n int64) <-chan error {
	out := make(chan error, 1)
	go func() { out <- l.Ensure(ctx, off, n) }()
	return out
}

// TestOneFillForManyWaiters: waiters of one chunk share one request, and one
// that gives up leaves the others alone.
func TestOneFillForManyWaiters(t *testing.T) {
	r := newRig(t, 8*testChunk)
	g := newGate()
	r.blob.Gate = g.hold
	l := r.open()
	first := ensure(t.Context(), l, 0, 1)
	<-g.arrived
	ctx, cancel := context.WithCancel(t.Context())
	second := ensure(ctx, l, 100, 1)
	third := ensure(t.Context(), l, 200, testChunk-200)
	await(func() bool { return waiters(l, 0) == 3 })
	cancel()
	require.ErrorIs(t, <-second, context.Canceled)
	require.Equal(t, 2, waiters(l, 0))
	g.verdict <- nil
	require.NoError(t, <-first)
	require.NoError(t, <-third)
	require.EqualValues(t, 2, r.blob.Requests(), "index and one chunk")
	require.Equal(t, 1, r.checkResident(l))
}

// TestLastWaiterCancels: when everybody gave up the request is cancelled, and
// the chunk can be fetched anew at once.
func TestLastWaiterCancels(t *testing.T) {
	r := newRig(t, 8*testChunk)
	g := newGate()
	ended := make(chan error, 2)
	r.blob.Gate = func(ctx context.Context, es []chunk.Extent) error {
		err := g.hold(ctx, es)
		ended <- err
		return err
	}
	l := r.open()
	ctx, cancel := context.WithCancel(t.Context())
	first, second := ensure(ctx, l, 0, 1), ensure(ctx, l, 1, 1)
	<-g.arrived
	await(func() bool { return waiters(l, 0) == 2 })
	cancel()
	require.ErrorIs(t, <-first, context.Canceled)
	require.ErrorIs(t, <-second, context.Canceled)
	require.ErrorIs(t, <-ended, context.Canceled)
	third := ensure(t.Context(), l, 0, 1)
	<-g.arrived
	g.verdict <- nil
	require.NoError(t, <-third)
	require.Equal(t, 1, r.checkResident(l))
}

// TestSharedFailure: everybody who waits for a request gets its error.
func TestSharedFailure(t *testing.T) {
	r := newRig(t, 8*testChunk)
	g := newGate()
	r.blob.Gate = g.hold
	l := r.open()
	down := errors.New("registry is down")
	first := ensure(t.Context(), l, 0, 2*testChunk)
	<-g.arrived
	second := ensure(t.Context(), l, testChunk, 1)
	await(func() bool { return waiters(l, 1) == 2 })
	g.verdict <- down
	require.ErrorIs(t, <-first, down)
	require.ErrorIs(t, <-second, down)
	require.Zero(t, waiters(l, 0)+waiters(l, 1))
}

// TestOverlap: a read that spans chunks on their way and others fetches only the
// others.
func TestOverlap(t *testing.T) {
	r := newRig(t, 8*testChunk)
	g := newGate()
	r.blob.Gate = g.hold
	l := r.open()
	first := ensure(t.Context(), l, 2*testChunk, testChunk)
	<-g.arrived
	second := ensure(t.Context(), l, testChunk, 3*testChunk)
	require.Equal(t, []chunk.Extent{r.plan.Data.At(1).Blob, r.plan.Data.At(3).Blob}, <-g.arrived)
	g.verdict <- nil
	g.verdict <- nil
	require.NoError(t, <-first)
	require.NoError(t, <-second)
	require.Equal(t, 3, r.checkResident(l))
}

// TestCloseCancels: Close ends what is on its way and who waits is told.
func TestCloseCancels(t *testing.T) {
	r := newRig(t, 8*testChunk)
	g := newGate()
	r.blob.Gate = g.hold
	l := r.open()
	first := ensure(t.Context(), l, 0, 1)
	<-g.arrived
	require.NoError(t, l.Close(t.Context()))
	require.ErrorIs(t, <-first, ErrClosed)
	require.ErrorIs(t, l.Ensure(t.Context(), 0, 1), ErrClosed)
	require.NoError(t, l.Close(t.Context()))
}

func TestCancelledBefore(t *testing.T) {
	r := newRig(t, 8*testChunk)
	l := r.open()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, l.Ensure(ctx, 0, 1), context.Canceled)
	require.ErrorIs(t, l.Fill(ctx), context.Canceled)
	require.ErrorIs(t, l.Warm(ctx, []chunk.Extent{{Off: 0, Len: 1}}), context.Canceled)
	require.EqualValues(t, 1, r.blob.Requests(), "the index only")
}

// TestFillWaitsForReads: the background fill starts no request while a read
// waits, and goes on when it has been served.
func TestFillWaitsForReads(t *testing.T) {
	r := newRig(t, 8*testChunk)
	g := newGate()
	r.blob.Gate = g.hold
	l := r.open()
	read := ensure(t.Context(), l, 0, 1)
	<-g.arrived
	filled := make(chan error, 1)
	go func() { filled <- l.Fill(t.Context()) }()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, l.awaitIdle(ctx), context.Canceled, "not idle while the read waits")
	g.verdict <- nil
	require.NoError(t, <-read)
	es := <-g.arrived
	require.Len(t, es, 7, "one batch for the rest")
	g.verdict <- nil
	require.NoError(t, <-filled)
	<-l.Complete()
}
