package e2e

import (
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// Nobody is refused while the daemon is away, killed or replaced: the keeper has
// the socket.
func TestSocketOutlivesTheDaemon(t *testing.T) {
	testenv.RequireRoot(t)
	dir := t.TempDir()
	d, err := testenv.StartDaemon(t.Context(), filepath.Join(dir, "d"), testenv.DaemonOptions{Supervise: true})
	require.NoError(t, err)
	stop := sync.OnceValue(d.Stop)
	t.Cleanup(func() { assert.NoError(t, stop()) })
	dial := func() {
		conn, err := new(net.Dialer).DialContext(t.Context(), "unix", d.Socket)
		require.NoError(t, err)
		require.NoError(t, conn.Close())
	}
	served := func() int {
		log, err := d.Log()
		require.NoError(t, err)
		return strings.Count(log, "lazyerofsd serves")
	}
	away := func(pid int, sig unix.Signal) {
		want := served() + 1
		require.NoError(t, unix.Kill(pid, sig))
		tick := time.NewTicker(5 * time.Millisecond) // the queue of a socket that nobody serves is finite
		defer tick.Stop()
		for served() < want {
			dial()
			<-tick.C
		}
	}
	child, err := d.Child(t.Context(), 0)
	require.NoError(t, err)
	away(child, unix.SIGKILL)
	away(d.Pid(), unix.SIGHUP)
	dial()
	require.NoError(t, stop(), "a listener is no reason for a supervisor to stay")
}
