package remote

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"time"

	digest "github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// Event describes one finished read of a range.
type Event struct {
	// Blob is the blob's digest.
	Blob digest.Digest
	// Range is what was asked for, in the blob.
	Range chunk.Extent
	// Got is how many bytes came.
	Got int64
	// Start and Duration tell when and how long, the taking of the bytes included.
	Start    time.Time
	Duration time.Duration
	// Err is nil on success.
	Err error
}

// Observer is told of every read. It is called from many goroutines and must
// not block.
type Observer interface{ Observe(Event) }

// ObserverFunc is a function as an Observer.
type ObserverFunc func(Event)

// Observe implements Observer.
func (f ObserverFunc) Observe(e Event) { f(e) }

// Observers tells several.
type Observers []Observer

// Observe implements Observer.
func (os Observers) Observe(e Event) {
	for _, o := range os {
		o.Observe(e)
	}
}

// Observe returns b with every range read reported to o. Right around a bare
// blob, a range is a request, but for fail-over and resumption.
func Observe(b Blob, o Observer) Blob { return &observed{Blob: b, o: o} }

type observed struct {
	Blob
	o Observer
}

// ReadAt implements Blob.
func (b *observed) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	start := time.Now()
	n, err := b.Blob.ReadAt(ctx, p, off)
	b.report(chunk.Extent{Off: off, Len: int64(len(p))}, int64(n), start, err)
	return n, err
}

// ReadExtents implements Blob.
func (b *observed) ReadExtents(ctx context.Context, es []chunk.Extent, fn func(i int, r io.Reader) error) error {
	start := time.Now()
	got := make([]atomic.Int64, len(es))
	err := b.Blob.ReadExtents(ctx, es, func(i int, r io.Reader) error {
		return fn(i, &counted{r: r, n: &got[i]})
	})
	for i, e := range es {
		b.report(e, got[i].Load(), start, err)
	}
	return err
}

func (b *observed) report(e chunk.Extent, got int64, start time.Time, err error) {
	b.o.Observe(Event{Blob: b.Digest(), Range: e, Got: got, Start: start, Duration: time.Since(start), Err: err})
}

type counted struct {
	r io.Reader
	n *atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// Metrics counts reads for Prometheus. Its only label is the outcome, one of
// five words: no digest and no host, which would grow without bound.
type Metrics struct {
	reads   *prometheus.CounterVec
	bytes   prometheus.Counter
	seconds prometheus.Histogram
}

// NewMetrics returns metrics that the caller registers.
func NewMetrics() *Metrics {
	return &Metrics{
		reads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lazyerofs_remote_reads_total", Help: "Ranges read from registries, by outcome.",
		}, []string{"outcome"}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "lazyerofs_remote_bytes_total", Help: "Bytes of blobs received from registries.",
		}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "lazyerofs_remote_read_seconds", Help: "Duration of range reads from registries.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 16),
		}),
	}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	m.reads.Describe(ch)
	m.bytes.Describe(ch)
	m.seconds.Describe(ch)
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	m.reads.Collect(ch)
	m.bytes.Collect(ch)
	m.seconds.Collect(ch)
}

// Observe implements Observer.
func (m *Metrics) Observe(e Event) {
	m.reads.WithLabelValues(outcome(e.Err)).Inc()
	m.bytes.Add(float64(e.Got))
	m.seconds.Observe(e.Duration.Seconds())
}

func outcome(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return "canceled"
	case errors.Is(err, ErrUnavailable):
		return "unavailable"
	case errors.Is(err, ErrGone):
		return "gone"
	}
	return "other"
}
