package drivertest

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/driver"
)

// Unending is a Layer that never says that it is complete, so that a driver serves
// what is resident.
type Unending struct {
	*Layer
	never chan struct{}
}

// NewUnending is NewLayer, filled.
func NewUnending(tb testing.TB, dir, id string, img *Image) *Unending {
	l := &Unending{Layer: NewLayer(tb, dir, id, img), never: make(chan struct{})}
	require.NoError(tb, l.Fill(tb.Context()))
	return l
}

// Complete is never closed.
func (l *Unending) Complete() <-chan struct{} { return l.never }

// BenchResident times the reads of the file "big" of an image that is resident, with
// cold page cache of the mount, by another process: in reads of block bytes, see
// TimeReads, through the driver or, not served, straight from the data file. The
// driver and its keeper are used up.
func BenchResident(b *testing.B, d driver.Server, k *Keeper, img *Image, served bool, block int) {
	target := b.TempDir()
	l := NewUnending(b, b.TempDir(), "big", img)
	var mounted driver.Layer = l
	if !served {
		mounted = l.Layer
	}
	m, err := d.Mount(b.Context(), target, mounted)
	require.NoError(b, err)
	var total time.Duration
	asked := d.Stats().Hits
	for b.Loop() {
		took, err := TimeReads(b.Context(), filepath.Join(target, "big"), block)
		require.NoError(b, err)
		total += took
	}
	n := float64(b.N)
	if block == 0 {
		b.ReportMetric(total.Seconds()*1e6/n/float64(len(img.Data)/4096), "us/read")
	} else {
		b.ReportMetric(float64(len(img.Data))*n/1e6/total.Seconds(), "MB/s")
	}
	b.ReportMetric(float64(d.Stats().Hits-asked)/n, "requests/op")
	require.NoError(b, m.Close(b.Context()))
	<-m.Done()
	require.NoError(b, d.Shutdown(b.Context()))
	require.NoError(b, l.Close())
	require.NoError(b, k.Close())
}
