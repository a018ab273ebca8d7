package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver/fanotify"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// install builds the daemon with a version and puts it at path, as an upgrade
// does: the running one keeps the file that it was started from.
func install(t *testing.T, path, version string) {
	t.Helper()
	root, err := testenv.Root()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-X main.version="+version, "-o", path+".new", "./cmd/lazyerofsd")
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NoError(t, os.Rename(path+".new", path))
}

// unanswered returns when an event stays taken: one for data that is here is
// answered at once.
func unanswered(t *testing.T, look func() ([]fanotify.Taken, error)) {
	t.Helper()
	var before []fanotify.Taken
	require.Eventually(t, func() bool {
		now, err := look()
		if err != nil {
			return false
		}
		stays := slices.ContainsFunc(now, func(e fanotify.Taken) bool { return slices.Contains(before, e) })
		before = now
		return stays
	}, time.Minute, 50*time.Millisecond)
}

// A container runs on while the daemon is upgraded, killed, and killed again with
// a read of the container in its hands.
func TestDaemonKilledAndUpgradedUnderAContainer(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "lazyerofsd")
	install(t, binary, "one")
	n := startBinary(t, nil, binary)
	ref, image := n.big()
	n.pull(ref)
	box := n.hold(ref, "box", "/lines")

	install(t, binary, "two")
	require.NoError(t, n.daemon.Replace(t.Context()))
	log, err := n.daemon.Log()
	require.NoError(t, err)
	require.Contains(t, log, "version=two")
	pid, err := n.daemon.Child(t.Context(), 0)
	require.NoError(t, err)
	require.NoError(t, unix.Kill(pid, unix.SIGKILL))
	require.Contains(t, n.ctr("tasks", "list"), "RUNNING")

	n.reg.Refuse(refuseAll) // so that what the container reads stays unanswered
	require.NoError(t, testenv.DropCaches())
	box.let()
	unanswered(t, n.daemon.Taken)
	pid, err = n.daemon.Child(t.Context(), pid)
	require.NoError(t, err)
	require.NoError(t, unix.Kill(pid, unix.SIGKILL))
	require.Contains(t, n.ctr("tasks", "list"), "RUNNING")
	n.reg.Refuse(nil)

	require.Equal(t, heldOutput+"/lines: "+lines(), box.wait())
	log, err = n.daemon.Log()
	require.NoError(t, err)
	require.Contains(t, log, "answering reads that the predecessor had taken")
	require.NotContains(t, log, "denying")
	require.NotContains(t, log, "quarantined")
	require.Equal(t, testenv.TinyOutput, n.run(ref, "next", image.Ready...), "a new container")
}
