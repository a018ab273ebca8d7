package fs

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
	"github.com/lazyerofs/lazyerofs/fs/driver/fusetree"
)

func TestHeldLayersAreOneMountWithoutBeingMounted(t *testing.T) {
	r := newRig(t)
	img := r.publish(drivertest.NewImage(t, 21, false), false, nil)
	l, release, err := r.Hold(t.Context(), img.labels, false)
	require.NoError(t, err)
	again, other, err := r.Hold(t.Context(), img.labels, false)
	require.NoError(t, err)
	require.Same(t, l, again, "one layer for one blob")

	tree, err := fusetree.New(t.Context(), fusetree.Config{Keeper: &r.keeper})
	require.NoError(t, err)
	at := r.newTarget("image")
	m, err := tree.MountImage(t.Context(), at, []driver.Layer{l})
	require.NoError(t, err)
	r.requireTree(at, img)
	require.NoError(t, m.Close(t.Context()))
	<-m.Done()
	require.NoError(t, tree.Shutdown(t.Context()))

	other()
	other()
	require.Error(t, r.c.Store.Remove(img.desc.Digest), "it is still held")
	release()
	require.NoError(t, r.c.Store.Remove(img.desc.Digest))

	_, _, err = r.Hold(t.Context(), map[string]string{}, false)
	var miss *MountError
	require.ErrorAs(t, err, &miss)
	require.Equal(t, ReasonSource, miss.Reason)
	bad := r.publish(drivertest.NewImage(t, 22, false), false, nil)
	defer r.offline()()
	_, _, err = r.Hold(t.Context(), bad.labels, false)
	require.ErrorAs(t, err, &miss)
	require.Equal(t, ReasonRegistry, miss.Reason)
}

// A successor holds what is mounted without network.
func TestHoldingWhatIsMountedNeedsNoNetwork(t *testing.T) {
	r := newRig(t)
	img := r.publish(drivertest.NewImage(t, 23, false), false, nil)
	_, release, err := r.Hold(t.Context(), img.labels, false)
	require.NoError(t, err)
	release()
	r.stop()
	defer r.offline()()
	r.start()
	l, release, err := r.Hold(t.Context(), img.labels, true)
	require.NoError(t, err)
	require.Empty(t, r.log.Requests(), "the registry was asked")
	require.NotNil(t, l.Data())
	release()
}
