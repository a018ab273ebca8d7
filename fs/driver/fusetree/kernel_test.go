package fusetree

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
)

func TestACompleteLayerIsAdoptedAndNeedsNoKeeper(t *testing.T) {
	r := newRig(t, Config{})
	img := drivertest.NewImage(t, 1, true)
	l := r.layer("l", img)
	require.NoError(t, l.Fill(r.ctx))
	target, _ := r.mount(l)
	require.Empty(t, r.keeper.Names())
	require.NoError(t, r.driver.Shutdown(r.ctx))
	r.requireFiles(target, img.Files) // with nobody there
	r.succeed()
	m, err := r.driver.Adopt(r.ctx, target, l)
	require.NoError(t, err)
	require.Equal(t, target, m.Target())
	held, err := os.Open(target)
	require.NoError(t, err)
	require.NoError(t, m.Close(r.ctx))
	select {
	case <-m.Done():
		require.Fail(t, "done while it is open")
	default:
	}
	require.NoError(t, held.Close())
	r.await(m.Done())
}
