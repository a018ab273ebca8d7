package keeper

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A child that was ready is replaced at once, however often it is killed; starts
// are never closer than minDelay, and children that do not get ready wait longer
// and longer.
func TestRestartDelay(t *testing.T) {
	r := newRig(t, "")
	for gen := 1; gen <= 8; gen++ {
		pid, _ := r.up(gen, "1")
		require.NoError(t, unix.Kill(pid, unix.SIGKILL))
	}
	r.up(9, "1")
	r.tell("clear")
	r.signal(unix.SIGTERM)
	require.Zero(t, r.exit())
	log := r.stderr()
	require.Equal(t, 8, strings.Count(log, "starting the daemon again"))
	for _, late := range []string{"delay=200ms", "delay=400ms"} {
		require.NotContains(t, log, late)
	}
}

// A child that is killed between fork and exec, or at any moment of its start,
// loses nothing that is stored.
func TestKilledWhileStarting(t *testing.T) {
	r := newRig(t, "")
	pid, _ := r.up(1, "1")
	for range 4 {
		require.NoError(t, unix.Kill(pid, unix.SIGKILL))
		pid = r.child(pid) // as soon as it exists
	}
	require.NoError(t, unix.Kill(pid, unix.SIGKILL))
	// Of the last one: others may have been ready for a moment.
	m := r.next(fmt.Sprintf(" pid %d ", r.child(pid)))
	require.True(t, m.Ready)
	require.GreaterOrEqual(t, field(t, m.Status, 1), 2) // it counts in what is stored
	r.tell("clear")
	r.signal(unix.SIGTERM)
	require.Zero(t, r.exit())
}
