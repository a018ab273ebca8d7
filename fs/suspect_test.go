package fs

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/cache"
	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
)

// A mount that may show zeros is kept from new containers by the next process
// too, until it is gone.
func TestQuarantineLastsAsLongAsTheMount(t *testing.T) {
	r := newRig(t)
	img := r.publish(drivertest.NewImage(t, 18, false), false, nil)
	at := r.mount("a", img)
	r.Quarantine([]string{layerID(img.desc.Digest)}, errors.New("events were lost"))
	for _, other := range []string{"b", "c"} {
		r.stop()
		r.start()
		require.NoError(t, r.Mount(t.Context(), at, img.labels), "what is mounted is taken over")
		require.ErrorContains(t, r.Check(t.Context(), at), "events were lost")
		require.Equal(t, ReasonQuarantine, reason(t, r.Mount(t.Context(), r.newTarget(other), img.labels)))
	}
	require.NoError(t, r.Unmount(t.Context(), at))
	eventually(t, "the layer is closed", func() bool { f := r.FS; f.mu.Lock(); defer f.mu.Unlock(); return len(f.layers) == 0 })
	require.NoError(t, r.Mount(t.Context(), at, img.labels))
	require.NoError(t, r.Check(t.Context(), at))
	r.requireTree(at, img)
}

// Superblocks end with the boot.
func TestDoubtsEndWithTheBoot(t *testing.T) {
	boot, err := bootID()
	require.NoError(t, err)
	require.NoError(t, doubts(cache.Record{}))
	require.ErrorContains(t, doubts(cache.Record{Suspect: &cache.Suspect{Boot: boot, Why: "lost"}}), "lost")
	require.NoError(t, doubts(cache.Record{Suspect: &cache.Suspect{Boot: "another", Why: "lost"}}))
	require.ErrorContains(t, doubts(cache.Record{Condemned: "wrong", Suspect: &cache.Suspect{Boot: "another"}}), "wrong")
}
