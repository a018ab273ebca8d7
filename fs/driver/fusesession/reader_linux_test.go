package fusesession

import (
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A killed reader leaves though nobody heard that it was interrupted.
func TestAKilledReaderLeavesWithoutInterrupt(t *testing.T) {
	r := newRig(t, nil)
	release := r.fs.hold()
	defer release()
	// O_DIRECT: a read of its own, which cannot be killed once it was taken.
	cmd := exec.Command("dd", "if="+filepath.Join(r.target, r.fs.names[4]), "of=/dev/null", "bs=64k", "iflag=direct", "status=none")
	require.NoError(t, cmd.Start())
	require.Eventually(t, func() bool { return r.fs.reads.Load() > 0 }, 20*time.Second, time.Millisecond)
	require.NoError(t, cmd.Process.Kill())
	var exit *exec.ExitError
	require.ErrorAs(t, cmd.Wait(), &exit)
	require.False(t, exit.Exited(), "it was not killed: %v", exit)
	release()
	r.readAll()
	r.end()
}

// A watch that is stopped says that nobody was killed, and its context has ended.
func TestReaderThatLives(t *testing.T) {
	cancel := make(chan struct{})
	close(cancel)
	ctx, stop := ReaderContext(t.Context(), cancel, 1)
	select {
	case <-ctx.Done():
		require.Fail(t, "an interrupt alone ended it")
	case <-time.After(3 * dyingEvery):
	}
	require.False(t, stop())
	require.Error(t, ctx.Err())
}
