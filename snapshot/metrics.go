package snapshot

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics count what Prepare answered. They exist without a registry too.
type metrics struct {
	hits     prometheus.Counter
	misses   *prometheus.CounterVec
	restores *prometheus.CounterVec
	prepare  *prometheus.HistogramVec
}

func newMetrics() *metrics {
	return &metrics{
		hits: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "lazyerofs", Subsystem: "snapshot", Name: "hits_total",
			Help: "Layers answered without a download.",
		}),
		misses: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "lazyerofs", Subsystem: "snapshot", Name: "misses_total",
			Help: "Layers left to containerd to download, by reason.",
		}, []string{"reason"}),
		restores: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "lazyerofs", Subsystem: "snapshot", Name: "restores_total",
			Help: "Layers mounted or adopted again after a restart, by result.",
		}, []string{"result"}),
		prepare: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "lazyerofs", Subsystem: "snapshot", Name: "prepare_seconds",
			Help:    "Time to answer Prepare and View, by outcome.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 8),
		}, []string{"outcome"}),
	}
}

func (m *metrics) register(r prometheus.Registerer) error {
	for _, c := range []prometheus.Collector{m.hits, m.misses, m.restores, m.prepare} {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}

// Outcomes of Prepare and View in metrics.
const (
	outcomeHit    = "hit"
	outcomeMiss   = "miss"
	outcomeActive = "active"
	outcomeError  = "error"
)

func (m *metrics) observe(outcome string, since time.Time) {
	m.prepare.WithLabelValues(outcome).Observe(time.Since(since).Seconds())
}

func (m *metrics) restored(err error) {
	result := "ok"
	if err != nil {
		result = "failed"
	}
	m.restores.WithLabelValues(result).Inc()
}
