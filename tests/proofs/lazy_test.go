package proofs

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// bill is what one layer cost at the registry.
type bill struct {
	beforeReady, requests int // of any method
	bytes                 int64
}

// account reads the registry's log: nothing but ranges may be asked for.
func account(t *testing.T, s *shop, img *image, ready time.Time) (layers []bill) {
	t.Helper()
	for _, l := range img.manifest.Layers {
		var b bill
		for _, r := range s.Log() {
			if r.Blob() != l.Digest.String() {
				continue
			}
			// A small layer is all metadata; nobody gains from reading less of it.
			whole := r.Range == "" || (r.Bytes >= l.Size && l.Size > 64<<10)
			require.False(t, r.Method == http.MethodGet && whole, "the whole of layer %s was asked for", l.Digest)
			b.requests++
			b.bytes += r.Bytes
			if r.Start.Before(ready) {
				b.beforeReady++
			}
		}
		layers = append(layers, b)
	}
	return layers
}

// The registry's own log: no layer is fetched as a whole, and a layer is mounted
// after at most four requests.
func TestRegistryLog(t *testing.T) {
	for name, img := range map[string]func(*shop) *testenv.Image{
		"layered": (*shop).layered,
		"python":  (*shop).python,
	} {
		t.Run(name, func(t *testing.T) {
			s := openShop(t, scratch(t))
			began := time.Now()
			lazy := s.convert(img(s), "lazy", zstdForm)
			t.Logf("converted in %s", time.Since(began).Round(time.Millisecond))
			n := startNode(t, nil)
			began = time.Now()
			n.pull(lazy.ref)
			ready := time.Now()
			out := n.run(lazy.ref, "one", lazy.ready...)
			t.Logf("pulled in %s, ran in %s: %q", ready.Sub(began).Round(time.Millisecond), time.Since(ready).Round(time.Millisecond), out)
			var fetched, size int64
			for i, b := range account(t, s, lazy, ready) {
				l := lazy.manifest.Layers[i]
				t.Logf("layer %d: %d requests before it was mounted, %d in all, %d of %d bytes", i, b.beforeReady, b.requests, b.bytes, l.Size)
				require.LessOrEqual(t, b.beforeReady, 4)
				require.NotZero(t, b.beforeReady)
				fetched, size = fetched+b.bytes, size+l.Size
			}
			t.Logf("in all %d of %d bytes", fetched, size)
			require.Less(t, fetched, size)
		})
	}
}
