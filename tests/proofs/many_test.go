package proofs

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// fetched starts count containers of img at once on a new node and returns how
// many bytes of its layers the registry sent.
func (s *shop) fetched(t *testing.T, img *image, count int) (bytes int64) {
	t.Helper()
	n := startNode(t, nil)
	s.Reset()
	n.pull(img.ref)
	g, ctx := errgroup.WithContext(t.Context())
	for i := range count {
		g.Go(func() error {
			_, err := n.Run(ctx, append([]string{"--snapshotter", "lazyerofs", img.ref, fmt.Sprint("box", i)}, img.ready...)...)
			return err
		})
	}
	require.NoError(t, g.Wait())
	require.NoError(t, s.Settle(t.Context(), time.Second), "requests are logged when they have ended")
	for _, l := range img.manifest.Layers {
		for _, r := range s.gets(l.Digest.String()) {
			bytes += r.Bytes
		}
	}
	return bytes
}

// Ten containers of one image, started at once, fetch what one does.
func TestTenContainersFetchAsOne(t *testing.T) {
	s := openShop(t, scratch(t))
	img := s.convert(s.python(), "lazy", zstdForm)
	bytes := map[int]int64{}
	for _, count := range []int{1, 10} {
		t.Run(fmt.Sprint(count), func(t *testing.T) { bytes[count] = s.fetched(t, img, count) })
	}
	ratio := float64(bytes[10]) / float64(bytes[1])
	t.Logf("one fetched %d bytes, ten fetched %d: %.3f times", bytes[1], bytes[10], ratio)
	require.LessOrEqual(t, ratio, 1.1)
}
