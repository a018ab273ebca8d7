package fusetree

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// The number of a superblock is free with it, and the next mount gets it.
func TestAnotherSuperblockOfTheSameNameIsNotTakenForIt(t *testing.T) {
	r := newRig(t, Config{})
	img := drivertest.NewImage(t, 1, false)
	l := r.layer("l", img)
	require.NoError(t, l.Fill(r.ctx))
	target, m := r.mount(l)
	own, ok := m.(*mount)
	require.True(t, ok)
	require.True(t, own.alive())
	require.NoError(t, r.driver.Shutdown(r.ctx)) // nobody watches
	require.NoError(t, unix.Unmount(target, 0))
	require.Eventually(t, func() bool { return !own.alive() }, deadline, pollEvery)
	for range 20 { // others may take the number before us
		again := t.TempDir()
		info, err := erofs.Mount(r.ctx, erofs.MountConfig{Source: l.Data().Name(), Target: again})
		require.NoError(t, err)
		r.undo(again)
		if info.Superblock == own.super {
			break
		}
	}
	require.False(t, own.alive())
	none := &mount{}
	none.settle("erofs-none")
	require.False(t, none.alive())
}

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
