package erofs

import (
	"bytes"
	"runtime/debug"
	"testing"
)

// BenchmarkParseMillion parses the metadata of a million inodes. The peak of
// resident memory is that of parsing only: it is reset after the image is made.
func BenchmarkParseMillion(b *testing.B) {
	image, blocks := millionImage(b)
	p := DefaultPolicy(blocks * 4096)
	p.MetaHint = int64(len(image))
	debug.FreeOSMemory()
	base := resetPeak(b)
	b.ReportAllocs()
	for b.Loop() {
		got, err := Parse(bytes.NewReader(image), p)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(got.Tree.Len()), "inodes")
	}
	b.ReportMetric(float64(peak(b)-base)/1024, "MiB-peak-rss")
}

// millionImage is the metadata of an image, and its number of blocks.
func millionImage(b *testing.B) ([]byte, int64) {
	t, err := millionBuilder().Tree()
	if err != nil {
		b.Fatal(err)
	}
	l, err := NewLayout(t, WriteOptions{})
	if err != nil {
		b.Fatal(err)
	}
	var out bytes.Buffer
	const data = 1 << 38
	if _, err := l.WriteMeta(&out, data); err != nil {
		b.Fatal(err)
	}
	return out.Bytes(), l.MetaSize()/4096 + data/4096
}
