//go:build guest

package systemd

import (
	"os"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// listening is what the store of a service without a socket unit holds always: the
// socket that the daemon opened.
const listening = 1

// stop stops a unit and checks that it is.
func stop(t *testing.T, unit string) {
	t.Helper()
	systemctl(t, "stop", unit)
	require.Equal(t, "inactive", show(t, unit).Active)
}

// The service is killed by systemctl, every second time its successor at once too,
// while cold readers compare every byte.
func TestServiceKilled(t *testing.T) {
	systemctl(t, "start", service) // returns after READY=1
	s := show(t, service)
	require.True(t, s.running(), "%+v", s)
	require.Equal(t, listening, s.Stored)
	env, err := os.ReadFile("/proc/" + strconv.Itoa(s.MainPID) + "/environ")
	require.NoError(t, err)
	size, ok := variable(string(env), "FDSTORE")
	require.True(t, ok, "systemd sets no $FDSTORE")
	require.Equal(t, "16384", size)

	r := newRig(t, 1)
	r.mount()
	s = show(t, service)
	require.GreaterOrEqual(t, s.Stored, listening+guarded)
	t.Logf("mounted, %d descriptors stored", s.Stored)
	before, kills, whileGuarded := s.Restarts, 0, 0
	kill := func() {
		systemctl(t, "kill", "-s", "KILL", service)
		kills++
		now := show(t, service)
		require.GreaterOrEqual(t, now.Stored, listening)
		if now.Stored >= listening+guarded {
			whileGuarded++
		}
	}
	r.disturb(3, 8, func(n int) {
		kill()
		if n%2 == 1 {
			old := s.MainPID
			until(t, "the successor", func() bool { s = show(t, service); return s.MainPID != 0 && s.MainPID != old })
			kill()
		}
		s = await(t, service, s.MainPID)
	})
	t.Logf("killed %d times, %d of them with an incomplete layer", kills, whileGuarded)
	require.GreaterOrEqual(t, whileGuarded, 3)
	require.Equal(t, kills, show(t, service).Restarts-before)
	r.umount(service, listening)
	stop(t, service)
	require.Equal(t, listening, show(t, service).Stored, "FileDescriptorStorePreserve")
}

// The binary is replaced and the service restarted, which is an upgrade.
func TestServiceRestarted(t *testing.T) {
	systemctl(t, "start", service)
	r := newRig(t, 2)
	r.mount()
	old := show(t, service).MainPID
	r.disturb(3, 5, func(int) {
		replace(t, daemon)
		systemctl(t, "restart", service)
		old = await(t, service, old).MainPID
	})
	exe, err := os.Readlink("/proc/" + strconv.Itoa(old) + "/exe")
	require.NoError(t, err)
	require.Equal(t, daemon, exe, "the new binary runs")
	r.umount(service, listening)
	stop(t, service)
}

// daemon is what the units run.
const daemon = "/usr/local/bin/lazyerofsd"

// replace puts a copy of a program in its own place, as a package manager does.
func replace(t *testing.T, program string) {
	t.Helper()
	b, err := os.ReadFile(program)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(program+".new", b, 0o755))
	require.NoError(t, os.Rename(program+".new", program))
}

// Connections that come while the service is stopped start it, by its socket unit;
// what the service kept of a socket of its own before is let go.
func TestServiceStartedBySocket(t *testing.T) {
	require.Equal(t, "inactive", show(t, service).Active)
	systemctl(t, "start", socket)
	r := newRig(t, 3)
	r.mount()
	s := show(t, service)
	require.True(t, s.running(), "%+v", s)
	require.GreaterOrEqual(t, s.Stored, guarded)
	r.disturb(2, 3, func(int) {
		systemctl(t, "kill", "-s", "KILL", service)
		s = await(t, service, s.MainPID)
	})
	stop(t, service)
	require.Equal(t, "active", show(t, socket).Active)
	r.umount(service, 0) // starts it
	require.True(t, show(t, service).running())
	stop(t, socket)
	stop(t, service)
}

// A reader that comes while the service is stopped waits for the next start.
func TestServiceStopped(t *testing.T) {
	systemctl(t, "start", service)
	r := newRig(t, 4)
	r.mount()
	stop(t, service)
	rs := r.read()
	rs.wait(t)
	s := show(t, service)
	require.Equal(t, "dead-resources-pinned", s.Sub)
	require.GreaterOrEqual(t, s.Stored, listening+guarded)
	systemctl(t, "start", service)
	// And once more, if there is something left to read.
	stop(t, service)
	systemctl(t, "start", service)
	<-rs.done
	require.NoError(t, rs.err)
	require.NoError(t, testenv.DropCaches())
	require.NoError(t, r.img.Compare(r.at))
	r.umount(service, listening)
	stop(t, service)
	// The socket would be in the way of the other unit, as docs/operations.md says.
	require.Equal(t, listening, show(t, service).Stored)
	systemctl(t, "clean", "--what=fdstore", service)
	until(t, "an empty store", func() bool { return show(t, service).Stored == 0 })
	require.Equal(t, "active", show(t, store).Active)
	stop(t, store)
}
