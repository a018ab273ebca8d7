package all

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
	"github.com/lazyerofs/lazyerofs/fs/driver/fanotify"
	"github.com/lazyerofs/lazyerofs/fs/driver/fuseblock"
	"github.com/lazyerofs/lazyerofs/fs/driver/fusetree"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// On this kernel every driver but cachefiles works, in the order of preference.
func TestSelectHere(t *testing.T) {
	servers, err := New(t.Context(), Config{Keeper: &drivertest.Keeper{}})
	require.NoError(t, err)
	var list []driver.Driver
	for _, s := range servers {
		list = append(list, s)
	}
	var names []string
	dir := t.TempDir()
	for _, d := range list {
		if d.Probe(dir) == nil {
			names = append(names, d.Name())
		}
	}
	usable, probes, err := driver.Select(t.Context(), list, dir, "", nil)
	require.NoError(t, err, "%v", probes)
	require.Equal(t, list, usable)
	require.Equal(t, []string{fanotify.Name, fuseblock.Name, fusetree.Name}, names, "%v", probes)
	for _, s := range servers {
		ids, err := s.Settle()
		require.NoError(t, err)
		require.Empty(t, ids)
		require.NoError(t, s.Shutdown(t.Context()))
	}
}

func TestNewPassesErrorsOn(t *testing.T) {
	_, err := New(t.Context(), Config{})
	require.ErrorContains(t, err, "keeper")
}
