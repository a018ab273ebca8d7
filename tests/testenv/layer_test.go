package testenv

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A step holds no mount of others: it sees none of them, and they can be taken
// away for good while it runs.
func TestStepLetsGoOfMounts(t *testing.T) {
	RequireRoot(t)
	dir := t.TempDir()
	for _, sub := range []string{"lower", "upper", "work", "at"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, sub), 0o755))
	}
	at := filepath.Join(dir, "at")
	require.NoError(t, unix.Mount("overlay", at, "overlay", 0,
		"lowerdir="+filepath.Join(dir, "lower")+",upperdir="+filepath.Join(dir, "upper")+",workdir="+filepath.Join(dir, "work")))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(at, 0)) })

	step := t.TempDir()
	require.NoError(t, runStep(t.Context(), Step{Name: "look", Script: "cat /proc/self/mountinfo >\"$ROOT/seen\"\n"}, nil, step))
	seen, err := os.ReadFile(filepath.Join(step, "upper", "seen"))
	require.NoError(t, err)
	require.Contains(t, string(seen), filepath.Join(step, "root"))
	require.NotContains(t, string(seen), at)
}
