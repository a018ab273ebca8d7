package e2e

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// requireLazy fails unless every layer was answered without a download, in few
// requests.
func (n *node) requireLazy(image *testenv.Image) {
	n.t.Helper()
	all, whole := n.layerGets(image)
	require.Empty(n.t, whole, "layers were downloaded")
	for digest, gets := range all {
		require.LessOrEqual(n.t, gets, 4, digest)
	}
}

func TestLazyImage(t *testing.T) {
	for name, f := range map[string]form{
		"zstd": {Config: differ.Config{Form: differ.Zstd}},
		"raw":  {Config: differ.Config{Form: differ.Raw}},
	} {
		t.Run(name, func(t *testing.T) {
			n := start(t, nil)
			_, plain := n.tiny()
			ref, image := n.lazy(plain, name, f)
			n.pull(ref)
			n.requireLazy(image)
			require.Equal(t, testenv.TinyOutput, n.run(ref, "one", image.Ready...))
			_, whole := n.layerGets(image)
			require.Empty(t, whole)
			require.Equal(t, testenv.TinyOutput, n.run(ref, "two", image.Ready...), "a second container")
		})
	}
}
