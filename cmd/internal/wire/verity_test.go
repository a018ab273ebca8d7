package wire

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/cmd/internal/config"
	"github.com/lazyerofs/lazyerofs/fs/dmverity"
	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
	"github.com/lazyerofs/lazyerofs/fs/format/formattest"
	"github.com/lazyerofs/lazyerofs/fs/fsverity"
)

// What the configuration asks for and this machine cannot is done without: layers
// are mounted all the same. Guests of tests/vm show what is done where it can be.
func TestVerityWhereItCanBe(t *testing.T) {
	img := drivertest.NewImage(t, 1, false)
	data, v, err := formattest.WithTree(img.Data)
	require.NoError(t, err)
	for _, on := range []bool{false, true} {
		c := rooted(t)
		c.Verity = config.Verity{DM: on, FS: on}
		n, err := New(t.Context(), c, Options{Metrics: prometheus.NewRegistry()})
		require.NoError(t, err)
		throughDM, sealing := on && dmverity.Probe(c.Root) == nil, on && fsverity.Probe(c.Root) == nil
		require.Equal(t, throughDM, n.throughDM)
		require.Equal(t, sealing, n.sealing)

		file, at := filepath.Join(c.Root, "layer.erofs"), filepath.Join(c.Root, "at")
		require.NoError(t, os.WriteFile(file, data, 0o600))
		require.NoError(t, dmverity.WriteSidecar(file, v))
		require.NoError(t, os.Mkdir(at, 0o755))
		require.NoError(t, n.Files.MountFile(t.Context(), at, file))
		infos, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(at))
		require.NoError(t, err)
		require.Len(t, infos, 1)
		require.Equal(t, throughDM, strings.HasPrefix(infos[0].Source, "/dev/dm-"))
		for name, want := range img.Files {
			got, err := os.ReadFile(filepath.Join(at, name))
			require.NoError(t, err)
			require.True(t, string(want) == string(got), name)
		}
		f, err := os.Open(file)
		require.NoError(t, err)
		_, err = fsverity.Measure(f)
		require.Equal(t, sealing, err == nil)
		require.NoError(t, f.Close())
		require.NoError(t, n.Files.Unmount(t.Context(), at))
		require.NoError(t, n.End(t.Context()))
	}
}
