package all

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
	"github.com/lazyerofs/lazyerofs/fs/driver/fanotify"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestSelectHere(t *testing.T) {
	drivers, err := New(t.Context(), Config{Fanotify: fanotify.Config{Keeper: &drivertest.Keeper{}}})
	require.NoError(t, err)
	usable, probes, err := driver.Select(t.Context(), drivers, t.TempDir(), "", nil)
	require.NoError(t, err, "%v", probes)
	require.Equal(t, fanotify.Name, usable[0].Name())
	for _, d := range drivers {
		server, ok := d.(driver.Server)
		require.True(t, ok, d.Name())
		ids, err := server.Settle()
		require.NoError(t, err)
		require.Empty(t, ids)
		require.NoError(t, server.Shutdown(t.Context()))
	}
}

func TestNewPassesErrorsOn(t *testing.T) {
	_, err := New(t.Context(), Config{})
	require.ErrorContains(t, err, "keeper")
}
