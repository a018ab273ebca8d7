//go:build guest

package systemd

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

const (
	containerd      = "containerd.service"
	containerdStore = "containerd-store.target"

	// binary is what the unit runs.
	binary = "/usr/local/bin/containerd"
)

// ctr asks the system's containerd.
func ctr(t *testing.T, args ...string) string {
	t.Helper()
	out, err := run(t, testenv.MustTool(t, "ctr"), args...)
	require.NoError(t, err, "ctr %s: %s", strings.Join(args, " "), out)
	return out
}

// containerd's own unit with our drop-in, around a containerd that has lazyerofs in
// it: killed, restarted with its binary replaced, stopped and started, while cold
// readers compare every byte of a pulled image. A reader that comes while it is
// stopped waits.
func TestContainerd(t *testing.T) {
	systemctl(t, "start", containerd)
	s := show(t, containerd)
	require.True(t, s.running(), "%+v", s)
	require.Regexp(t, `io\.containerd\.snapshotter\.v1 +lazyerofs +\S+ +ok`, ctr(t, "plugins", "list"))
	require.Zero(t, s.Stored)

	r := newRig(t, 6)
	ctr(t, "images", "pull", "--plain-http", "--snapshotter", "lazyerofs", r.ref)
	ctr(t, "images", "mount", "--snapshotter", "lazyerofs", r.ref, r.at)
	s = show(t, containerd)
	require.GreaterOrEqual(t, s.Stored, guarded)
	t.Logf("mounted, %d descriptors stored", s.Stored)

	stop(t, containerd)
	rs := r.read()
	rs.wait(t)
	require.GreaterOrEqual(t, show(t, containerd).Stored, guarded)
	systemctl(t, "start", containerd)
	s = await(t, containerd, s.MainPID)

	whileGuarded := 0
	r.disturb(3, 6, func(n int) {
		if n%2 == 0 {
			systemctl(t, "kill", "-s", "KILL", containerd)
		} else {
			replace(t, binary)
			systemctl(t, "restart", containerd)
		}
		if show(t, containerd).Stored >= guarded {
			whileGuarded++
		}
		s = await(t, containerd, s.MainPID)
	})
	require.GreaterOrEqual(t, whileGuarded, 2)
	<-rs.done
	require.NoError(t, rs.err)
	exe, err := os.Readlink("/proc/" + strconv.Itoa(s.MainPID) + "/exe")
	require.NoError(t, err)
	require.Equal(t, binary, exe, "the new binary runs")

	ctr(t, "images", "unmount", "--rm", "--snapshotter", "lazyerofs", r.at)
	ctr(t, "images", "remove", "--sync", r.ref)
	until(t, "an empty store", func() bool { return show(t, containerd).Stored == 0 })
	stop(t, containerd)
	require.Equal(t, "active", show(t, containerdStore).Active)
	stop(t, containerdStore)
}
