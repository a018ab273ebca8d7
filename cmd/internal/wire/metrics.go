package wire

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lazyerofs/lazyerofs/fs/driver"
)

// registerDriver shows the counters of a driver. They are read when somebody
// looks, so that the path of an event does not know of them.
func registerDriver(r prometheus.Registerer, d driver.Server) error {
	var errs []error
	for result, value := range map[string]func(driver.Stats) uint64{
		"resident": func(s driver.Stats) uint64 { return s.Hits },
		"filled":   func(s driver.Stats) uint64 { return s.Misses },
		"denied":   func(s driver.Stats) uint64 { return s.Denied },
	} {
		errs = append(errs, r.Register(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Namespace: "lazyerofs", Subsystem: "driver", Name: "events_total",
			Help:        "Reads that the kernel asked about, by what became of them.",
			ConstLabels: prometheus.Labels{"driver": d.Name(), "result": result},
		}, func() float64 { return float64(value(d.Stats())) })))
	}
	errs = append(errs, r.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "lazyerofs", Subsystem: "driver", Name: "incomplete_layers",
		Help:        "Layers whose missing ranges this process answers for.",
		ConstLabels: prometheus.Labels{"driver": d.Name()},
	}, func() float64 { return float64(d.Stats().Served) })))
	return errors.Join(errs...)
}
