//go:build guest

package systemd

import (
	"os"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Our own supervisor as a service: the daemon is killed and replaced under readers,
// systemd does not stop it, and it ends when it is told to and nothing is mounted.
func TestSupervised(t *testing.T) {
	systemctl(t, "start", supervised)
	keeper := await(t, supervised, 0).MainPID
	r := newRig(t, 5)
	r.mount()
	pid := child(t, keeper)
	require.Positive(t, pid)
	next := func() {
		old := pid
		until(t, "another daemon", func() bool { pid = child(t, keeper); return pid != 0 && pid != old })
	}
	r.disturb(3, 6, func(n int) {
		if n%2 == 0 {
			require.NoError(t, unix.Kill(pid, unix.SIGKILL))
		} else {
			replace(t, daemon)
			systemctl(t, "reload", supervised)
		}
		next()
	})
	exe, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe")
	require.NoError(t, err)
	require.Equal(t, daemon, exe, "the new binary runs")
	s := show(t, supervised)
	require.True(t, s.running())
	require.Equal(t, keeper, s.MainPID)
	_, err = run(t, "systemctl", "stop", supervised)
	require.Error(t, err, "RefuseManualStop")
	r.umount(supervised, 0)
	systemctl(t, "kill", "--kill-who=main", supervised)
	until(t, "the supervisor's end", func() bool { return show(t, supervised).Active == "inactive" })
}
