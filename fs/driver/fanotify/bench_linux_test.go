package fanotify

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
)

// BenchmarkResident reads 64 MiB that are resident, with cold page cache of the
// mount, by another process: without a mark and with one, for which every read
// of the kernel is an event.
func BenchmarkResident(b *testing.B) {
	const size = 64 << 20
	img := drivertest.NewBigImage(b, size)
	for _, block := range []int{0, 128 << 10} {
		what := map[int]string{0: "random4K", 128 << 10: "sequential"}[block]
		b.Run(what+"/plain", func(b *testing.B) { benchmark(b, img, Config{}, false, block) })
		for _, readers := range []int{1, 2, 4} {
			b.Run(fmt.Sprintf("%s/marked-%d", what, readers), func(b *testing.B) {
				benchmark(b, img, Config{Readers: readers}, true, block)
			})
		}
		b.Run(what+"/plain-1M", func(b *testing.B) { benchmark(b, img, Config{ReadAheadKB: 1024}, false, block) })
		b.Run(what+"/marked-1M", func(b *testing.B) { benchmark(b, img, Config{ReadAheadKB: 1024}, true, block) })
	}
}

func benchmark(b *testing.B, img *drivertest.Image, conf Config, served bool, block int) {
	k := &drivertest.Keeper{}
	drivertest.BenchResident(b, newDriver(b, k, conf), k, img, served, block)
}

// BenchmarkParallel is eight processes that read the same resident file at random
// with cold page cache: what several events at once cost.
func BenchmarkParallel(b *testing.B) {
	const processes = 8
	img := drivertest.NewBigImage(b, 16<<20)
	for _, readers := range []int{1, 2} {
		b.Run(fmt.Sprintf("marked-%d", readers), func(b *testing.B) {
			k := &drivertest.Keeper{}
			d := newDriver(b, k, Config{Readers: readers})
			l := drivertest.NewUnending(b, b.TempDir(), "big", img)
			target := b.TempDir()
			m, err := d.Mount(b.Context(), target, l)
			require.NoError(b, err)
			events := d.Stats().Hits
			for b.Loop() {
				var all errgroup.Group
				for range processes {
					all.Go(func() error {
						_, err := drivertest.TimeReads(b.Context(), filepath.Join(target, "big"), 0)
						return err
					})
				}
				require.NoError(b, all.Wait())
			}
			b.ReportMetric(float64(d.Stats().Hits-events)/b.Elapsed().Seconds(), "events/s")
			require.NoError(b, m.Close(b.Context()))
			<-m.Done()
			require.NoError(b, errors.Join(d.Shutdown(b.Context()), l.Close(), k.Close()))
		})
	}
}
