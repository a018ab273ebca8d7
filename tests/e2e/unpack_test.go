package e2e

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// A plain OCI image: every layer is a miss, our differ turns it into EROFS, and
// the container sees what tar would have unpacked.
func TestPlainImage(t *testing.T) {
	n := start(t, nil)
	ref, image := n.tiny()
	n.pull(ref)
	require.Equal(t, testenv.TinyOutput, n.run(ref, "one", image.Ready...))
	all, _ := n.layerGets(image)
	require.Len(t, all, len(image.Layers))
	for digest, gets := range all {
		require.Equal(t, 1, gets, digest)
	}
	require.Len(t, n.snapshots(), len(image.Layers))
	log, err := n.daemon.Log()
	require.NoError(t, err)
	require.Contains(t, log, "layer is left to containerd")
	t.Log(log)
}
