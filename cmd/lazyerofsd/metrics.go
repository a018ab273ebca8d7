package main

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/fanotify"
)

// counted is a driver that counts what it does.
type counted interface {
	Stats() fanotify.Stats
}

// registerDriver shows the counters of a driver that has any. They are read when
// somebody looks, so that the path of an event does not know of them.
func registerDriver(r prometheus.Registerer, d driver.Driver) error {
	c, ok := d.(counted)
	if !ok {
		return nil
	}
	var errs []error
	for result, value := range map[string]func(fanotify.Stats) uint64{
		"resident": func(s fanotify.Stats) uint64 { return s.Hits },
		"filled":   func(s fanotify.Stats) uint64 { return s.Misses },
		"denied":   func(s fanotify.Stats) uint64 { return s.Denied },
	} {
		errs = append(errs, r.Register(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Namespace: "lazyerofs", Subsystem: "driver", Name: "events_total",
			Help:        "Reads that the kernel asked about, by what became of them.",
			ConstLabels: prometheus.Labels{"driver": d.Name(), "result": result},
		}, func() float64 { return float64(value(c.Stats())) })))
	}
	errs = append(errs, r.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "lazyerofs", Subsystem: "driver", Name: "incomplete_layers",
		Help:        "Layers whose missing ranges this process answers for.",
		ConstLabels: prometheus.Labels{"driver": d.Name()},
	}, func() float64 { return float64(c.Stats().Marked) })))
	return errors.Join(errs...)
}
