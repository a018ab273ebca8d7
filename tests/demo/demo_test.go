package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, testenv.IgnoreRegistry()) }

// elsewhere is a registry that hosts.toml names as docker.io, with the tiny image.
func elsewhere(t *testing.T) (hostsDir string, workload []string) {
	t.Helper()
	testenv.RequireRoot(t)
	recipe, err := testenv.Tiny()
	require.NoError(t, err)
	image, err := recipe.Build(t.Context(), func(string) {})
	require.NoError(t, err)
	reg, err := testenv.StartRegistry(t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, reg.Close()) })
	require.NoError(t, image.Push(t.Context(), reg.Addr()+"/library/tiny:1"))
	hostsDir = t.TempDir()
	dir := filepath.Join(hostsDir, "docker.io")
	require.NoError(t, os.Mkdir(dir, 0o755))
	hosts := fmt.Sprintf("server = \"http://%s\"\n\n[host.\"http://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", reg.Addr(), reg.Addr())
	require.NoError(t, os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(hosts), 0o644))
	return hostsDir, image.Ready
}

// nothingLeft gives the demo a place of its own and fails the test unless it took
// away all that it made there.
func nothingLeft(t *testing.T) {
	t.Helper()
	own, err := os.MkdirTemp("/var/tmp", "demo-test-")
	require.NoError(t, err)
	before := base
	base = own
	t.Cleanup(func() {
		base = before
		mounts, err := testenv.Mounts(own)
		require.NoError(t, err)
		require.Empty(t, mounts)
		require.NoError(t, os.Remove(own), "files were left")
	})
}

func TestDemoRunsAnyImageThroughHostsTOML(t *testing.T) {
	hostsDir, workload := elsewhere(t)
	nothingLeft(t)
	var out bytes.Buffer
	args := append([]string{"-image", "docker.io/library/tiny:1", "-hosts-dir", hostsDir, "-rtt", "1ms", "--"}, workload...)
	require.NoError(t, run(t.Context(), args, &out), out.String())
	require.Equal(t, 2, strings.Count(out.String(), "printed: /etc/kept: one"), out.String())
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	require.Regexp(t, regexp.MustCompile(`^demo: lazyerofs ready in [0-9.]+ s \(fetched [0-9.]+ of [0-9.]+ MB\), overlayfs in [0-9.]+ s$`), lines[len(lines)-1])
}

// With another driver it is the same, and with none the image is unpacked, which
// one sentence says.
func TestDemoWithOtherDrivers(t *testing.T) {
	hostsDir, workload := elsewhere(t)
	for forbid, want := range map[string]string{
		"fanotify":                               "driver: fuseblock\n",
		"fanotify,cachefiles,fuseblock,fusetree": "This machine cannot load layers lazily (fanotify: left out; ",
	} {
		nothingLeft(t)
		var out bytes.Buffer
		args := append([]string{"-image", "docker.io/library/tiny:1", "-hosts-dir", hostsDir, "-rtt", "1ms", "-forbid", forbid, "--"}, workload...)
		require.NoError(t, run(t.Context(), args, &out), out.String())
		require.Contains(t, out.String(), want)
		require.Equal(t, 2, strings.Count(out.String(), "printed: /etc/kept: one"), out.String())
	}
}

// cancelOn cancels a context when a text appears in what is written to it.
type cancelOn struct {
	text   string
	cancel context.CancelFunc
	mu     sync.Mutex
	seen   bytes.Buffer
}

func (c *cancelOn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen.Write(p)
	if strings.Contains(c.seen.String(), c.text) {
		c.cancel()
	}
	return len(p), nil
}

// TestInterruptedDemoLeavesNothing interrupts it at each thing that it says:
// while it fetches, converts, runs one system and then the other.
func TestInterruptedDemoLeavesNothing(t *testing.T) {
	hostsDir, workload := elsewhere(t)
	for _, when := range []string{"fetching", "line to the registry", "overlayfs printed"} {
		t.Run(when, func(t *testing.T) {
			nothingLeft(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			args := append([]string{"-image", "docker.io/library/tiny:1", "-hosts-dir", hostsDir, "-rtt", "1ms", "--"}, workload...)
			require.Error(t, run(ctx, args, &cancelOn{text: when, cancel: cancel}))
		})
	}
}

func TestParse(t *testing.T) {
	_, err := parse([]string{"-image", "docker.io/library/python:3.13"})
	require.ErrorContains(t, err, "CMD=")
	o, err := parse([]string{"-image", "x", "--", "python3", "-c", "print(1)"})
	require.NoError(t, err)
	require.Equal(t, []string{"python3", "-c", "print(1)"}, o.cmd)
	require.EqualValues(t, 100_000_000, o.line.BytesPerSecond)
}
