package fusetree

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
)

// bothWays mounts an image that is complete through FUSE and through the kernel's
// EROFS, for figures from one run.
func bothWays(b *testing.B, img *drivertest.Image, run func(b *testing.B, root string)) {
	for _, kind := range []string{"fusetree", "erofs"} {
		b.Run(kind, func(b *testing.B) {
			r := newRig(b, Config{ReadAheadKB: 1024})
			l := r.layer("l", img)
			if kind == "erofs" {
				require.NoError(b, l.Fill(r.ctx))
			}
			root, m := r.mount(l)
			require.NoError(b, l.Fill(r.ctx))
			before := asked(m)
			run(b, root)
			if kind == "fusetree" {
				b.ReportMetric(float64(asked(m)-before)/float64(b.N), "requests/op")
			}
			r.end(m)
		})
	}
}

// asked counts the requests of a mount.
func asked(m driver.Mount) uint64 {
	if own, ok := m.(*mount); ok && own.session != nil {
		resident, other := own.session.Counts()
		return resident + other
	}
	return 0
}

// BenchmarkWalk looks at 10,000 files: with the kernel's caches of names and
// inodes dropped, and with them.
func BenchmarkWalk(b *testing.B) {
	img := buildLayer(b, tenThousand()...)
	for _, cold := range []bool{true, false} {
		b.Run(map[bool]string{true: "cold", false: "warm"}[cold], func(b *testing.B) {
			bothWays(b, img, func(b *testing.B, root string) {
				for b.Loop() {
					if cold {
						b.StopTimer()
						require.NoError(b, os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0))
						b.StartTimer()
					}
					walk(b, root)
				}
			})
		})
	}
}

func walk(b *testing.B, root string) {
	n := 0
	require.NoError(b, filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err == nil {
			_, err = d.Info()
			n++
		}
		return err
	}))
	require.Greater(b, n, 10000)
}

func tenThousand() []entry {
	var entries []entry
	for k := range 10000 {
		entries = append(entries, file(fmt.Sprintf("usr/lib/python3/dist-packages/package%03d/module_%02d.py", k/100, k%100), "x"))
	}
	return entries
}

// BenchmarkRead reads 64 MiB that are not in the mount's page cache.
func BenchmarkRead(b *testing.B) {
	const size = 64 << 20
	img := drivertest.NewBigImage(b, size)
	for name, block := range map[string]int{"sequential 1M": 1 << 20, "random 4K": 0} {
		b.Run(name, func(b *testing.B) {
			bothWays(b, img, func(b *testing.B, root string) {
				b.SetBytes(size)
				total := 0.0
				for b.Loop() {
					took, err := drivertest.TimeReads(b.Context(), filepath.Join(root, "big"), block)
					require.NoError(b, err)
					total += took.Seconds()
				}
				b.ReportMetric(size/1e6*float64(b.N)/total, "MB/s-read")
			})
		})
	}
}

// BenchmarkMemory mounts 100 layers of 10,000 files and says how much of the heap
// each takes.
func BenchmarkMemory(b *testing.B) {
	img := buildLayer(b, tenThousand()...)
	for b.Loop() {
		r := newRig(b, Config{})
		l := r.layer("l", img)
		before := heap()
		var mounts []driver.Mount
		for range 100 {
			_, m := r.mount(l)
			mounts = append(mounts, m)
		}
		b.ReportMetric(float64(heap()-before)/100/1024, "KiB-heap/layer")
		b.ReportMetric(float64(resident(b))/1024/1024, "MiB-rss")
		for _, m := range mounts {
			r.end(m)
		}
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func resident(b *testing.B) int64 {
	stat, err := os.ReadFile("/proc/self/statm")
	require.NoError(b, err)
	var total, rss int64
	_, err = fmt.Sscan(string(stat), &total, &rss)
	require.NoError(b, err)
	return rss * int64(unix.Getpagesize())
}
