package fusetree

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
)

// A mount that is closed, but read, and a new one of the layer at its place are two
// connections: the end of the first takes nothing from the second, and of two a
// successor takes the one that is mounted.
func TestSamePlaceTwice(t *testing.T) {
	r := newRig(t, Config{})
	img := drivertest.NewImage(t, 1, false)
	l := r.layer("l", img)
	at, first := r.mount(l)
	reader, err := os.Open(filepath.Join(at, "dir0/file9"))
	require.NoError(t, err)
	require.NoError(t, first.Close(r.ctx))
	second, err := r.driver.Mount(r.ctx, at, l)
	require.NoError(t, err)
	require.Len(t, r.keeper.Names(), 4)

	require.NoError(t, r.driver.Shutdown(r.ctx))
	require.NoError(t, second.Release())
	r.succeed()
	second, err = r.driver.Adopt(r.ctx, at, l)
	require.NoError(t, err)
	orphans, err := r.driver.Settle()
	require.NoError(t, err)
	require.Equal(t, []string{"l"}, orphans, "of the first, which is read but not mounted")
	r.requireFiles(at, img.Files)
	require.NoError(t, reader.Close())
	require.Len(t, r.keeper.Names(), 2)
	r.end(second)
	require.Empty(t, r.keeper.Names())
}
