package remote_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/remote"
	"github.com/lazyerofs/lazyerofs/fs/remote/remotetest"
)

// A registry that takes requests and answers none holds a read no longer than its
// budget, though a request alone might wait for much longer.
func TestBudgetCutsAHangingRequest(t *testing.T) {
	g := newRig(t, nil)
	g.resolver = newResolver(t, remote.Timeouts{Header: time.Hour, Progress: time.Hour})
	b := remote.Retry(g.bare(t), remote.Policy{Budget: 200 * time.Millisecond, First: time.Millisecond})
	for name, f := range map[string]remotetest.Fault{"no answer": remotetest.Hang, "no progress": remotetest.Stall(1)} {
		g.faults.Add(http.MethodGet, "/blobs/", remotetest.Always, f)
		err := g.read(t, b, 0, 9000)
		require.ErrorIs(t, err, remote.ErrUnavailable, name)
		require.ErrorContains(t, err, "gave up after 200ms without data", name)
		g.faults.Clear()
		// The next read asks again. On a busy machine it may be cut in its turn.
		for began := time.Now(); ; {
			if err = g.read(t, b, 0, 9000); err == nil {
				break
			}
			require.ErrorContains(t, err, "gave up after 200ms without data")
			require.Less(t, time.Since(began), time.Minute)
		}
	}
}

// After a read gave up, others get only a short budget, until one byte arrives.
func TestProbation(t *testing.T) {
	g := newRig(t, nil)
	policy := remote.Policy{Budget: 6 * time.Second, First: 100 * time.Millisecond, Max: 4 * time.Second}
	b := remote.Retry(g.bare(t), policy)
	down := remotetest.Status(http.StatusServiceUnavailable)
	g.faults.Add(http.MethodGet, "/blobs/", remotetest.Always, down)
	require.ErrorContains(t, g.read(t, b, 0, 10), "gave up after 6s without data")
	require.ErrorContains(t, g.read(t, b, 0, 10), "gave up after 5s without data")
	g.faults.Clear()
	require.NoError(t, g.read(t, b, 0, 10))
	g.faults.Add(http.MethodGet, "/blobs/", remotetest.Always, down)
	require.ErrorContains(t, g.read(t, b, 0, 10), "gave up after 6s without data")
}
