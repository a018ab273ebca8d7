package wire

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/driver"
)

// counting is a driver that has counted.
type counting struct{ driver.Server }

func (counting) Name() string { return "test" }

func (counting) Stats() driver.Stats {
	return driver.Stats{Hits: 5, Misses: 3, Denied: 1, Served: 2}
}

func TestDriverMetrics(t *testing.T) {
	r := prometheus.NewRegistry()
	require.NoError(t, registerDriver(r, counting{}))
	require.NoError(t, testutil.GatherAndCompare(r, strings.NewReader(`
# HELP lazyerofs_driver_events_total Reads that the kernel asked about, by what became of them.
# TYPE lazyerofs_driver_events_total counter
lazyerofs_driver_events_total{driver="test",result="denied"} 1
lazyerofs_driver_events_total{driver="test",result="filled"} 3
lazyerofs_driver_events_total{driver="test",result="resident"} 5
# HELP lazyerofs_driver_incomplete_layers Layers whose missing ranges this process answers for.
# TYPE lazyerofs_driver_incomplete_layers gauge
lazyerofs_driver_incomplete_layers{driver="test"} 2
`)))
	require.Error(t, registerDriver(r, counting{}), "twice")
}
