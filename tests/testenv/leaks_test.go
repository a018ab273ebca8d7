package testenv

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, IgnoreRegistry()) }

// verifyNoGoroutines is goleak.VerifyNone with patience for a busy machine.
func verifyNoGoroutines(t *testing.T, ignored ...goleak.Option) {
	t.Helper()
	var leak error
	for began := time.Now(); time.Since(began) < 20*time.Second; {
		if leak = goleak.Find(ignored...); leak == nil { // it waits a little itself
			return
		}
	}
	require.NoError(t, leak)
}

func TestMountsAreFoundAndTakenAway(t *testing.T) {
	RequireRoot(t)
	dir := t.TempDir()
	outer := filepath.Join(dir, "outer")
	require.NoError(t, os.Mkdir(outer, 0o755))
	require.NoError(t, unix.Mount("tmpfs", outer, "tmpfs", 0, ""))
	t.Cleanup(func() { require.NoError(t, UnmountAll(dir)) })
	inner := filepath.Join(outer, "inner")
	require.NoError(t, os.Mkdir(inner, 0o755))
	require.NoError(t, unix.Mount("tmpfs", inner, "tmpfs", 0, ""))

	got, err := Mounts(dir)
	require.NoError(t, err)
	require.Equal(t, []string{inner, outer}, got)
	held, err := os.Open(inner) // busy for a plain unmount
	require.NoError(t, err)
	defer held.Close()
	require.NoError(t, UnmountAll(dir))
	got, err = Mounts(dir)
	require.NoError(t, err)
	require.Empty(t, got)
}

func TestProcessesAreFoundByDirectory(t *testing.T) {
	dir := t.TempDir()
	none, err := Processes(dir)
	require.NoError(t, err)
	require.Empty(t, none)
	cmd := exec.Command("sleep")
	cmd.Args = []string{dir + "/named", "infinity"}
	require.NoError(t, cmd.Start())
	defer func() {
		require.NoError(t, cmd.Process.Kill())
		require.Error(t, cmd.Wait())
	}()
	// Start returns while the kernel is still laying out the new command line.
	require.Eventually(t, func() bool {
		got, err := Processes(dir)
		return err == nil && slices.Equal(got, []int{cmd.Process.Pid})
	}, 10*time.Second, time.Millisecond)
}

// failures is a testing.TB that notes errors instead of failing.
type failures struct {
	testing.TB
	n        int
	cleanups []func()
}

func (f *failures) Errorf(string, ...any) { f.n++ }
func (f *failures) Helper()               {}
func (f *failures) Cleanup(fn func())     { f.cleanups = append(f.cleanups, fn) }

func TestVerifyNoLeaksSeesAnOpenDescriptor(t *testing.T) {
	f := &failures{TB: t}
	VerifyNoLeaks(f, t.TempDir())
	open, err := os.Open("/proc/self/status")
	require.NoError(t, err)
	defer open.Close()
	f.cleanups[0]()
	require.Equal(t, 1, f.n)
}

func TestToolFindsAndExplains(t *testing.T) {
	root, err := Root()
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(root, "go.mod"))
	sh, err := Tool("sh")
	require.NoError(t, err)
	require.FileExists(t, sh)
	_, err = Tool("no-such-tool-anywhere")
	require.ErrorContains(t, err, "make deps")
}

func TestDropCaches(t *testing.T) {
	RequireRoot(t)
	require.NoError(t, DropCaches())
}
