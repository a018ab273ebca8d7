package probe

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/kernel"
)

// Outside of a guest nothing is known of the kernel, so that only the form of the
// answers is checked.
func TestProbes(t *testing.T) {
	dir := t.TempDir()
	facts, err := kernel.Describe(dir)
	require.NoError(t, err)
	t.Logf("Linux %s, %s", facts.Release, facts.FSType)
	want, inGuest := os.LookupEnv(Env)
	var have []string
	for _, c := range kernel.Report(dir) {
		t.Logf("%s: %v", c.Name, c.Err)
		if c.Err == nil {
			have = append(have, c.Name)
			continue
		}
		require.ErrorIs(t, c.Err, kernel.ErrNotSupported, "%s: an answer that says nothing", c.Name)
	}
	if inGuest {
		known := strings.Split(want, ",")
		slices.Sort(known)
		slices.Sort(have)
		require.Equal(t, known, have)
	}
}
