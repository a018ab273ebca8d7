package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lazyerofs/lazyerofs/cmd/internal/config"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConfigFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "c.toml")
	require.NoError(t, os.WriteFile(name, []byte("root = '/r/'\n[snapshotter]\nprepare_timeout = '3s'\n"), 0o600))
	c, err := options{config: name, address: "/run/x.sock"}.load()
	require.NoError(t, err)
	want := config.Default()
	want.Root, want.Address = "/r", "/run/x.sock"
	want.Snapshotter.PrepareTimeout = config.Duration(3 * time.Second)
	require.Equal(t, want, c)

	_, err = options{config: name + ".missing"}.load()
	require.ErrorIs(t, err, os.ErrNotExist, "a file that was named must exist")
}
