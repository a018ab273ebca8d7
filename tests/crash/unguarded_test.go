package crash

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver/fanotify"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// takenOver is in the log once for each mount of a quarantined layer.
const takenOver = "a mount of a quarantined layer was taken over"

// Daemon and keeper are both killed: the next start finds the layers that nothing
// watched, names them and where they are mounted, and gives them to nobody else.
func TestKeeperKilledToo(t *testing.T) {
	w := newWorld(t, fanotify.Name)
	w.up()
	layers, err := filepath.Glob(filepath.Join(w.daemon.Root, "cache", "layers", "*"))
	require.NoError(t, err)
	require.Len(t, layers, 3)

	old := w.daemon
	pid := w.child(0)
	require.NoError(t, unix.Kill(old.Pid(), unix.SIGSTOP)) // or it starts another one
	for _, pid := range []int{pid, old.Pid()} {
		require.NoError(t, unix.Kill(pid, unix.SIGKILL))
		require.Eventually(t, func() bool { return strings.Contains("Z", testenv.ProcessState(pid)) }, time.Minute, time.Millisecond)
	}

	next, err := testenv.StartDaemon(t.Context(), filepath.Join(w.dir, "d"), testenv.DaemonOptions{
		Supervise: true, Config: map[string]any{"snapshotter": map[string]any{"strict": true}},
	})
	require.NoError(t, err)
	w.daemon = next
	t.Cleanup(func() { require.NoError(t, old.Stop()) })
	var log string
	require.Eventually(t, func() bool {
		log, err = w.daemon.Log()
		return err == nil && strings.Count(log, takenOver) == len(layers)
	}, time.Minute, 10*time.Millisecond)
	for _, dir := range layers {
		digest := strings.TrimPrefix(filepath.Base(dir), "sha256-")
		require.Contains(t, lineWith(log, takenOver, digest, fanotify.ErrUnguarded.Error()), "mount="+w.daemon.Root)
	}
	out, err := w.try("mount", w.ref, t.TempDir())
	require.Error(t, err)
	require.Contains(t, out, "quarantine")
}

// lineWith returns the line of a log that holds all words.
func lineWith(log string, words ...string) string {
lines:
	for line := range strings.Lines(log) {
		for _, word := range words {
			if !strings.Contains(line, word) {
				continue lines
			}
		}
		return line
	}
	return ""
}
