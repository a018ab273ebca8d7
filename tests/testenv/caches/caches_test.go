package caches

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestDropWaitsForThoseThatHold(t *testing.T) {
	require.Zero(t, os.Geteuid(), "only root may drop caches, and a test that is skipped proves nothing")
	one, two := Hold(t), Hold(t)
	dropped := make(chan error, 1)
	go func() { dropped <- Drop() }()
	one()
	one() // counts once
	dir, err := os.Open(os.TempDir())
	require.NoError(t, err)
	defer dir.Close()
	require.ErrorIs(t, unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
	select {
	case err := <-dropped:
		require.Fail(t, "dropped what is held", "%v", err)
	case <-time.After(50 * time.Millisecond):
	}
	two()
	require.NoError(t, <-dropped)
}
