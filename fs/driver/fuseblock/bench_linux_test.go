package fuseblock

import (
	"testing"

	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
)

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
	drivertest.BenchResident(b, newDriver(b, k, conf), k, img, served, block)
}
