package doctor

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/driver"
)

// probeOnly is a driver of which only the probe is asked.
type probeOnly struct {
	driver.Driver
	name string
	err  error
}

func (p probeOnly) Name() string       { return p.name }
func (p probeOnly) Probe(string) error { return p.err }

func TestRunProbesTheMachineAndChoosesTheFirstDriverThatWorks(t *testing.T) {
	dir := t.TempDir()
	r, err := Run(t.Context(), Config{
		CacheDir: filepath.Join(dir, "not", "yet"),
		Address:  filepath.Join(dir, "none.sock"),
		Drivers: []driver.Driver{
			probeOnly{name: "first", err: errors.New("the kernel is too old")},
			probeOnly{name: "second"},
			probeOnly{name: "third"},
		},
		ContainerdConfig: filepath.Join(dir, "config.toml"),
	})
	require.NoError(t, err)
	require.Equal(t, dir, r.CacheDir)
	require.Equal(t, "second", r.Driver)
	require.Equal(t, []bool{false, true, true}, []bool{r.Drivers[0].OK, r.Drivers[1].OK, r.Drivers[2].OK})
	require.NotEmpty(t, r.Capabilities)
	require.NotEmpty(t, r.Kernel)
	require.Len(t, r.Integrity, 2)
	for _, c := range r.Integrity {
		require.NotEqual(t, c.OK, c.Detail != "", "%s: no reason, or one too many", c.Name)
	}

	var out bytes.Buffer
	require.NoError(t, r.Print(&out))
	require.Contains(t, out.String(), "the kernel is too old")
	require.Contains(t, out.String(), "served by the second driver")
	require.Contains(t, out.String(), "no daemon listens")
	require.Regexp(t, "(yes|no )  dm-verity.*\n  (yes|no )  fs-verity", out.String())
}

func TestRunSaysThatLayersAreDownloadedWithoutADriver(t *testing.T) {
	r, err := Run(t.Context(), Config{CacheDir: t.TempDir(), Drivers: []driver.Driver{probeOnly{name: "x", err: errors.New("no")}}})
	require.NoError(t, err)
	require.Empty(t, r.Driver)
	var out bytes.Buffer
	require.NoError(t, r.Print(&out))
	require.Contains(t, out.String(), "layers are downloaded whole")
}

// What is printed is what the daemon would do with its configuration.
func TestRunChoosesAsConfigured(t *testing.T) {
	none := errors.New("the kernel is too old")
	for _, c := range []struct {
		force  string
		forbid []string
		want   string
		says   string
	}{
		{"", []string{"first"}, "second", "no   first: forbidden by the configuration"},
		{"", []string{"first", "second"}, "", "no driver works here"},
		{"second", nil, "second", "the only one that the configuration allows"},
		{"old", nil, "", `only the driver "old", which does not work here`},
		{"first", []string{"first"}, "", "forbidden by the configuration"},
		{"fast", nil, "", `only the driver "fast"`},
	} {
		r, err := Run(t.Context(), Config{
			CacheDir: t.TempDir(), Force: c.force, Forbid: c.forbid,
			Drivers: []driver.Driver{probeOnly{name: "first"}, probeOnly{name: "old", err: none}, probeOnly{name: "second"}},
		})
		require.NoError(t, err)
		require.Equal(t, c.want, r.Driver, "%+v", c)
		require.Equal(t, "the kernel is too old", r.Drivers[1].Detail)
		var out bytes.Buffer
		require.NoError(t, r.Print(&out))
		require.Contains(t, out.String(), c.says)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Run(ctx, Config{CacheDir: t.TempDir(), Drivers: []driver.Driver{probeOnly{name: "x"}}})
	require.ErrorIs(t, err, context.Canceled)
}

func TestRunRefusesAFileAsCacheDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err := Run(t.Context(), Config{CacheDir: file})
	require.ErrorContains(t, err, "choose another with --root")
}

func TestContainerdKnowsFollowsImports(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
		return path
	}
	main := write("config.toml", "version = 3\nimports = ['conf.d/*.toml']\n[proxy_plugins.lazyerofs]\ntype = 'snapshot'\n")
	require.ErrorContains(t, containerdKnows(main), `"lazyerofs-diff" is not in`)
	write("conf.d/lazy.toml", "imports = ['../config.toml']\n[proxy_plugins.lazyerofs-diff]\ntype = 'diff'\n")
	require.NoError(t, containerdKnows(main))
	bad := write("bad.toml", "version = ")
	require.ErrorContains(t, containerdKnows(bad), "decoding "+bad)
	require.ErrorIs(t, containerdKnows(filepath.Join(dir, "none")), os.ErrNotExist)
}

func TestDaemonSocket(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.ErrorContains(t, daemonSocket(file), "is not a socket")
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	require.NoError(t, err)
	require.NoError(t, daemonSocket(filepath.Join(dir, "s")))
	require.NoError(t, l.Close())
}
