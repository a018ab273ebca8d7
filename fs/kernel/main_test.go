package kernel

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// childEnv makes the test binary run the probes and print their answers, for
// tests that look at them without privileges.
const childEnv = "LAZYEROFS_PROBE_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		for _, c := range Report(dir) {
			fmt.Printf("%s\t%v\n", c.Name, c.Err) //nolint:forbidigo // what a child prints is its answer
		}
		os.Exit(0) //nolint:forbidigo // this is the main of a child
	}
	goleak.VerifyTestMain(m)
}

// noLeaks fails the test if fn leaves a descriptor open, a mount attached or a
// file in dir.
func noLeaks(t *testing.T, dir string, fn func()) {
	t.Helper()
	fn() // the runtime opens descriptors of its own the first time
	fds, mounts := descriptors(t), mountTable(t, dir)
	fn()
	require.Equal(t, fds, descriptors(t), "descriptors")
	require.Equal(t, mounts, mountTable(t, dir), "mounts")
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left, "files")
}

func descriptors(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	var out []string
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil { // the descriptor of the listing itself is gone
			out = append(out, e.Name()+" "+target)
		}
	}
	return out
}

// mountTable lists the mounts that a probe in dir could have made: the machine may
// be busy mounting other things, and other tests probe too.
func mountTable(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	var out []string
	for _, line := range splitLines(entries) {
		if containsAny(line, dir+"/.probe-", "lazyerofs-probe") {
			out = append(out, line)
		}
	}
	return out
}
