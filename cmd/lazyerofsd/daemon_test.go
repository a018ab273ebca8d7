package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/lazyerofs/lazyerofs/cmd/internal/config"
	"github.com/lazyerofs/lazyerofs/cmd/internal/wire"
	"github.com/lazyerofs/lazyerofs/fs"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// testConfig is a configuration below a new directory.
func testConfig(t *testing.T) config.Config {
	t.Helper()
	dir, err := os.MkdirTemp("", "lzd-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	c := config.Default()
	c.Root, c.Address = filepath.Join(dir, "root"), filepath.Join(dir, "d.sock")
	c.Containerd.Address = filepath.Join(dir, "none.sock")
	c.Metrics.Address = "unix:" + filepath.Join(dir, "m.sock")
	return c
}

// runDaemon runs a daemon without a keeper until the returned call.
func runDaemon(t *testing.T, c config.Config) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	d, err := assemble(ctx, c, nil, wire.Inheritance{})
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- d.run(ctx) }()
	require.Eventually(t, func() bool {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.Address)
		return err == nil && conn.Close() == nil
	}, 10*time.Second, time.Millisecond)
	return func() {
		cancel()
		require.NoError(t, <-done)
	}
}

func client(t *testing.T, c config.Config) snapshots.Snapshotter {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+c.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "lazyerofs")
}

// TestDaemonWithoutAKeeper: it serves, and every layer is a miss that says why.
func TestDaemonWithoutAKeeper(t *testing.T) {
	c := testConfig(t)
	stop := runDaemon(t, c)
	sn := client(t, c)
	key := "default/1/extract-1 sha256:x"
	_, err := sn.Prepare(t.Context(), key, "", snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: "sha256:x"}))
	require.NoError(t, err)
	info, err := sn.Stat(t.Context(), key)
	require.NoError(t, err)
	require.Contains(t, info.Labels["io.lazyerofs.v1/miss"], "--supervise")

	body := metrics(t, c)
	require.Contains(t, body, `lazyerofs_snapshot_misses_total{reason="`+fs.ReasonDriver+`"} 1`)
	require.Contains(t, body, "go_goroutines")

	stop()

	stop = runDaemon(t, c)
	defer stop()
	_, err = client(t, c).Stat(t.Context(), key)
	require.NoError(t, err, "the snapshot is forgotten")
	_, err = client(t, c).Stat(t.Context(), "none")
	require.True(t, errdefs.IsNotFound(err))
}

func metrics(t *testing.T, c config.Config) string {
	t.Helper()
	network, at, err := c.Metrics.Listen()
	require.NoError(t, err)
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, at)
	}}
	defer tr.CloseIdleConnections()
	get := func(path string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://daemon"+path, nil)
		require.NoError(t, err)
		res, err := (&http.Client{Transport: tr, Timeout: 10 * time.Second}).Do(req)
		require.NoError(t, err)
		b, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		return res.StatusCode, string(b)
	}
	code, _ := get("/debug/pprof/")
	require.Equal(t, http.StatusNotFound, code, "profiles are off unless asked for")
	code, body := get("/metrics")
	require.Equal(t, http.StatusOK, code)
	return body
}

func TestListenUnix(t *testing.T) {
	dir := t.TempDir()
	at := filepath.Join(dir, "sub", "s")
	l, err := listenUnix(t.Context(), at)
	require.NoError(t, err)
	st, err := os.Stat(at)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), st.Mode().Perm(), "others may talk to us")
	_, err = listenUnix(t.Context(), at)
	require.ErrorContains(t, err, "another process")

	l.SetUnlinkOnClose(false) // as after kill -9
	require.NoError(t, l.Close())
	l, err = listenUnix(t.Context(), at)
	require.NoError(t, err)
	require.NoError(t, l.Close())

	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, []byte("precious"), 0o600))
	_, err = listenUnix(t.Context(), file)
	require.ErrorContains(t, err, "is no socket")
	require.FileExists(t, file)
}

func TestPassNamespace(t *testing.T) {
	in := metadata.NewIncomingContext(t.Context(), metadata.Pairs(namespaces.GRPCHeader, "k8s.io"))
	out, ok := metadata.FromOutgoingContext(passNamespace(in))
	require.True(t, ok)
	require.Equal(t, []string{"k8s.io"}, out.Get(namespaces.GRPCHeader))
	require.Equal(t, t.Context(), passNamespace(t.Context()))
}

// A start that fails half way leaves nothing open.
func TestFailedStartEndsWhatItBegan(t *testing.T) {
	c := testConfig(t)
	require.NoError(t, os.MkdirAll(c.Root, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(c.Root, "snapshots"), nil, 0o600))
	before, err := testenv.Descriptors()
	require.NoError(t, err)
	_, err = assemble(t.Context(), c, nil, wire.Inheritance{})
	require.Error(t, err)
	after, err := testenv.Descriptors()
	require.NoError(t, err)
	require.Subset(t, before, after, "what was open before may be closed by now")
	require.NoError(t, os.Remove(filepath.Join(c.Root, "snapshots")))
	runDaemon(t, c)()
}

func TestCommandLine(t *testing.T) {
	cmd := command()
	cmd.SetArgs([]string{"--root", "relative"})
	require.ErrorContains(t, cmd.ExecuteContext(t.Context()), "absolute path")
	for _, args := range [][]string{{"extra"}, {"--", "extra"}, {"--supervise", "extra"}} {
		cmd = command()
		cmd.SetArgs(args)
		require.ErrorContains(t, cmd.ExecuteContext(t.Context()), "unknown command", args)
	}
	cmd = command()
	cmd.SetArgs([]string{"--supervise", "--", "lazyerofs-absent"})
	require.ErrorContains(t, cmd.ExecuteContext(t.Context()), "finding what to supervise")
	require.NotEmpty(t, buildVersion())
}
