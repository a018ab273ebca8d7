package fuseblock

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
)

// slow is a layer that is resident but never says that it is complete, so that
// it is served.
type slow struct {
	*drivertest.Layer
	never chan struct{}
}

func (s *slow) Complete() <-chan struct{} { return s.never }

// BenchmarkResident reads 64 MiB that are resident, with cold page cache of the
// mount, by another process: straight from the data file, and through us.
func BenchmarkResident(b *testing.B) {
	const size = 64 << 20
	img := drivertest.NewBigImage(b, size)
	for _, block := range []int{0, 128 << 10} {
		what := map[int]string{0: "random4K", 128 << 10: "sequential"}[block]
		for _, c := range []struct {
			name   string
			conf   Config
			served bool
		}{
			{"plain", Config{}, false},
			{"plain-dio-1M", Config{DirectIO: true, ReadAheadKB: 1024}, false},
			{"fuse", Config{}, true},
			{"fuse-1loop", Config{Loops: 1}, true},
			{"fuse-4loops", Config{Loops: 4}, true},
			{"fuse-1M", Config{ReadAheadKB: 1024}, true},
			{"fuse-dio", Config{DirectIO: true}, true},
			{"fuse-dio-1M", Config{DirectIO: true, ReadAheadKB: 1024}, true},
			{"loop-dio-1M", Config{DirectIO: true, ReadAheadKB: 1024, LoopDevices: true}, true},
		} {
			b.Run(what+"/"+c.name, func(b *testing.B) { benchmark(b, img, c.conf, c.served, block) })
		}
	}
}

func benchmark(b *testing.B, img *drivertest.Image, conf Config, served bool, block int) {
	k := &drivertest.Keeper{}
	d := newDriver(b, k, conf)
	dir, target := b.TempDir(), b.TempDir()
	inner := drivertest.NewLayer(b, dir, "big", img)
	require.NoError(b, inner.Fill(b.Context()))
	l := &slow{Layer: inner, never: make(chan struct{})}
	if !served {
		close(l.never)
	}
	m, err := d.Mount(b.Context(), target, l)
	require.NoError(b, err)
	var total time.Duration
	requests := d.Stats().Hits
	for b.Loop() {
		took, err := drivertest.TimeReads(b.Context(), filepath.Join(target, "big"), block)
		require.NoError(b, err)
		total += took
	}
	requests = d.Stats().Hits - requests
	n := float64(b.N)
	if block == 0 {
		b.ReportMetric(total.Seconds()*1e6/n/float64(len(img.Data)/4096), "us/read")
	} else {
		b.ReportMetric(float64(len(img.Data))*n/1e6/total.Seconds(), "MB/s")
	}
	b.ReportMetric(float64(requests)/n, "requests/op")
	require.NoError(b, m.Close(b.Context()))
	<-m.Done()
	require.NoError(b, d.Shutdown(b.Context()))
	require.NoError(b, inner.Close())
	require.NoError(b, k.Close())
}
