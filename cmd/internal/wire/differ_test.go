package wire

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lazyerofs/lazyerofs/cmd/internal/config"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Stream processors are written as in containerd's configuration.
func TestStreamProcessors(t *testing.T) {
	all := processors(map[string]config.StreamProcessor{"io.containerd.ocicrypt.decoder.v1.tar.gzip": {
		Accepts: []string{"application/vnd.oci.image.layer.v1.tar+gzip+encrypted"},
		Returns: "application/vnd.oci.image.layer.v1.tar+gzip", Path: "ctd-decoder",
	}})
	require.Len(t, all, 1)
	_, takes := all[0](t.Context(), "application/vnd.oci.image.layer.v1.tar+gzip+encrypted")
	require.True(t, takes)
	_, takes = all[0](t.Context(), "application/vnd.oci.image.layer.v1.tar+gzip")
	require.False(t, takes)
}
