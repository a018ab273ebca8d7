package remote_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/remote"
	"github.com/lazyerofs/lazyerofs/fs/remote/remotetest"
)

func drain(_ int, r io.Reader) error {
	_, err := io.Copy(io.Discard, r)
	return err
}

func TestLawsOfEachDecorator(t *testing.T) {
	content := noise(1 << 20)
	for name, wrap := range map[string]func(remote.Blob) remote.Blob{
		"coalesce": func(b remote.Blob) remote.Blob {
			return remote.Coalesce(b, remote.Coalescing{MaxRequest: 10_000, Parallel: 2})
		},
		"limit":   func(b remote.Blob) remote.Blob { return remote.Limit(b, remote.NewLimiter(1, 1), "x") },
		"observe": func(b remote.Blob) remote.Blob { return remote.Observe(b, remote.NewMetrics()) },
		"retry":   func(b remote.Blob) remote.Blob { return remote.Retry(b, quick) },
	} {
		t.Run(name, func(t *testing.T) {
			g := newRig(t, nil)
			remotetest.Laws(t, wrap(g.bare(t)), content)
		})
	}
}

func TestCoalescePlansRequests(t *testing.T) {
	f := &fakeBlob{content: noise(1 << 20)}
	b := remote.Coalesce(f, remote.Coalescing{MaxGap: 100, MaxRequest: 1000, Parallel: 1})
	es := []chunk.Extent{{Off: 0, Len: 400}, {Off: 400, Len: 400}, {Off: 900, Len: 100}, {Off: 1000, Len: 10}, {Off: 2000, Len: 5000}, {Off: 7050, Len: 10}, {Off: 7161, Len: 10}}
	require.NoError(t, b.ReadExtents(t.Context(), es, drain))
	require.Equal(t, []chunk.Extent{{Off: 0, Len: 1000}, {Off: 1000, Len: 10}, {Off: 2000, Len: 5000}, {Off: 7050, Len: 10}, {Off: 7161, Len: 10}}, f.asked,
		"joined over small gaps, cut at the request size, a single long extent kept whole")

	f.asked = nil
	p := make([]byte, 3500)
	_, err := b.ReadAt(t.Context(), p, 7)
	require.NoError(t, err)
	require.True(t, bytes.Equal(f.content[7:3507], p))
	require.Len(t, f.asked, 4)
}

func TestCoalesceRunsRequestsAtOnce(t *testing.T) {
	f := &fakeBlob{content: noise(1 << 20), gate: make(chan struct{})}
	b := remote.Coalesce(f, remote.Coalescing{MaxRequest: 1000, Parallel: 4})
	done := make(chan error)
	go func() {
		_, err := b.ReadAt(t.Context(), make([]byte, 20_000), 0)
		done <- err
	}()
	for range 20 { // each read waits for one; four must be waiting for all to pass
		f.gate <- struct{}{}
	}
	require.NoError(t, <-done)
	require.LessOrEqual(t, f.peak, 4)
}

func TestCoalesceCountsTheWholePart(t *testing.T) {
	f := &fakeBlob{content: noise(1 << 20), fail: func(e chunk.Extent) error {
		if e.Off == 2000 {
			return &remote.HTTPError{Status: 503}
		}
		return nil
	}}
	b := remote.Coalesce(f, remote.Coalescing{MaxRequest: 1000})
	n, err := b.ReadAt(t.Context(), make([]byte, 10_000), 0)
	require.ErrorIs(t, err, remote.ErrUnavailable)
	require.Equal(t, 2000, n)
}

func TestRetryAsksOnlyForTheRest(t *testing.T) {
	f := &fakeBlob{content: noise(1 << 20)}
	failed := false
	f.fail = func(e chunk.Extent) error {
		if e.Off == 500_000 && !failed {
			failed = true
			return &remote.HTTPError{Status: 503}
		}
		return nil
	}
	b := remote.Retry(remote.Coalesce(f, remote.Coalescing{Parallel: 1}), quick)
	es := []chunk.Extent{{Off: 0, Len: 10}, {Off: 500_000, Len: 10}, {Off: 900_000, Len: 10}}
	seen := map[int]int{}
	require.NoError(t, b.ReadExtents(t.Context(), es, func(i int, r io.Reader) error {
		seen[i]++
		return drain(i, r)
	}))
	require.Equal(t, map[int]int{0: 1, 1: 1, 2: 1}, seen)
	require.Len(t, f.asked, 4)
}

func TestRetryGivesUp(t *testing.T) {
	f := &fakeBlob{content: noise(100), fail: func(chunk.Extent) error { return &remote.HTTPError{Method: "GET", URL: "u", Status: 503} }}
	p := quick
	p.Budget = 1 // ns: no pause fits
	_, err := remote.Retry(f, p).ReadAt(t.Context(), make([]byte, 10), 0)
	require.ErrorIs(t, err, remote.ErrUnavailable)
	require.ErrorContains(t, err, "gave up")
	require.Len(t, f.asked, 1)
}

func TestLimitBoundsRequests(t *testing.T) {
	l := remote.NewLimiter(3, 2)
	f := &fakeBlob{content: noise(1000), gate: make(chan struct{})}
	a, b := remote.Limit(f, l, "a"), remote.Limit(f, l, "b")
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			blob := a
			if i%2 == 0 {
				blob = b
			}
			_, _ = blob.ReadAt(t.Context(), make([]byte, 1), 0)
		})
	}
	for range 10 {
		f.gate <- struct{}{}
	}
	wg.Wait()
	require.LessOrEqual(t, f.peak, 3)

	// A wait for a slot ends with the context.
	hold := make(chan struct{})
	go func() { _, _ = remote.Limit(f, l, "a").ReadAt(t.Context(), make([]byte, 1), 0); close(hold) }()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := a.ReadAt(ctx, make([]byte, 1), 0)
	require.ErrorIs(t, err, context.Canceled)
	f.gate <- struct{}{}
	<-hold
}

func TestObserveTellsWhatHappened(t *testing.T) {
	g := newRig(t, nil)
	var mu sync.Mutex
	var events []remote.Event
	m := remote.NewMetrics()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(m)
	b := remote.Observe(g.bare(t), remote.Observers{m, remote.ObserverFunc(func(e remote.Event) {
		mu.Lock()
		defer mu.Unlock()
		events = append(events, e)
	})})
	require.NoError(t, g.read(t, b, 100, 200))
	require.NoError(t, g.readExtents(t, b, []chunk.Extent{{Off: 0, Len: 10}, {Off: 50, Len: 20}}))
	g.faults.Add("GET", "/blobs/", remotetest.Always, remotetest.Status(503))
	require.Error(t, g.read(t, b, 0, 10))
	g.faults.Clear()
	g.faults.Add("GET", "/blobs/", remotetest.Always, remotetest.Status(404))
	require.Error(t, g.read(t, b, 0, 10))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := b.ReadAt(ctx, make([]byte, 1), 0)
	require.ErrorIs(t, err, context.Canceled)
	mine := errors.New("mine")
	require.Equal(t, mine, b.ReadExtents(t.Context(), []chunk.Extent{{Len: 0}}, func(int, io.Reader) error { return mine }))

	require.Equal(t, chunk.Extent{Off: 100, Len: 200}, events[0].Range)
	require.Equal(t, int64(200), events[0].Got)
	require.Equal(t, g.digest, events[0].Blob)
	families, err := reg.Gather()
	require.NoError(t, err)
	require.Len(t, families, 3)
	counts := map[string]float64{}
	for _, f := range families {
		if f.GetName() == "lazyerofs_remote_reads_total" {
			for _, x := range f.GetMetric() {
				counts[x.GetLabel()[0].GetValue()] = x.GetCounter().GetValue()
			}
		}
	}
	require.Equal(t, 3.0, counts["ok"])
	require.Equal(t, 1.0, counts["unavailable"])
	require.Equal(t, 1.0, counts["canceled"])
	require.GreaterOrEqual(t, counts["gone"], 1.0)
}
