package proofs

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// TestMain builds our programs, so that what is tested is what is in the tree.
func TestMain(m *testing.M) {
	root, err := testenv.Root()
	if err == nil {
		cmd := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(root, "bin")+"/", "./cmd/...")
		cmd.Dir, cmd.Stdout, cmd.Stderr = root, os.Stderr, os.Stderr
		err = cmd.Run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "building our programs:", err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, testenv.IgnoreRegistry())
}

// scratch makes a directory with a short path, for paths in it stand in mount
// options and socket addresses.
func scratch(t *testing.T) string {
	t.Helper()
	testenv.RequireRoot(t)
	dir, err := os.MkdirTemp("", "proof-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

// shop is a registry that can be made to lie: images are pushed to the real one
// behind it, and pulled through the front.
type shop struct {
	*testenv.Registry
	t     *testing.T
	front *httptest.Server

	mu    sync.Mutex
	rules []func(next http.Handler) http.Handler
}

func openShop(t *testing.T, dir string) *shop {
	t.Helper()
	reg, err := testenv.StartRegistry(filepath.Join(dir, "reg"))
	require.NoError(t, err)
	s := &shop{Registry: reg, t: t}
	s.front = httptest.NewServer(s)
	t.Cleanup(func() {
		s.front.CloseClientConnections()
		s.front.Close()
		require.NoError(t, reg.Close())
	})
	return s
}

// addr is where images are pulled from.
func (s *shop) addr() string { return s.front.Listener.Addr().String() }

// between puts a rule in front of all that were given before.
func (s *shop) between(rule func(next http.Handler) http.Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rules = append(s.rules, rule)
}

// ServeHTTP answers through the rules.
func (s *shop) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var h http.Handler = s.Registry
	s.mu.Lock()
	for _, rule := range s.rules {
		h = rule(h)
	}
	s.mu.Unlock()
	h.ServeHTTP(w, r)
}

// gets returns the GET requests for a blob so far.
func (s *shop) gets(digest string) []testenv.Request {
	var out []testenv.Request
	for _, r := range s.Log() {
		if r.Method == http.MethodGet && r.Blob() == digest {
			out = append(out, r)
		}
	}
	return out
}

// node is a daemon and a containerd that uses it.
type node struct {
	*testenv.Containerd
	t       *testing.T
	daemon  *testenv.Daemon
	metrics string // socket
}

// startNode starts a node. settings go into the daemon's configuration, flags of
// ctr into pulls.
func startNode(t *testing.T, settings map[string]any) *node {
	t.Helper()
	dir := scratch(t)
	testenv.VerifyNoLeaks(t, dir)
	return startNodeIn(t, dir, settings)
}

// startNodeIn starts a node with all that it keeps in dir.
func startNodeIn(t *testing.T, dir string, settings map[string]any) *node {
	t.Helper()
	sock := filepath.Join(dir, "c.sock")
	n := &node{t: t, metrics: filepath.Join(dir, "m.sock")}
	config := map[string]any{
		"containerd": map[string]any{"address": sock},
		"metrics":    map[string]any{"address": "unix:" + n.metrics},
		"log_level":  "debug",
	}
	for k, v := range settings {
		config[k] = v
	}
	var err error
	n.daemon, err = testenv.StartDaemon(t.Context(), filepath.Join(dir, "d"), testenv.DaemonOptions{Supervise: true, Config: config})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, n.daemon.Stop())
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", n.daemonLog())
		}
	})
	n.Containerd, err = testenv.StartContainerd(t.Context(), filepath.Join(dir, "c"), testenv.ContainerdOptions{Daemon: n.daemon})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, n.Stop()) })
	require.NoError(t, os.Symlink(n.Address, sock))
	return n
}

func (n *node) daemonLog() string {
	log, err := n.daemon.Log()
	require.NoError(n.t, err)
	return log
}

// tryPull pulls ref for our snapshotter; args are further flags of ctr.
func (n *node) tryPull(ref string, args ...string) error {
	_, err := n.Ctr(n.t.Context(), append(append([]string{"images", "pull", "--plain-http", "--snapshotter", "lazyerofs"}, args...), ref)...)
	return err
}

func (n *node) pull(ref string, args ...string) {
	n.t.Helper()
	require.NoError(n.t, n.tryPull(ref, args...))
}

// tryRun runs a command in a container of ref and returns its output.
func (n *node) tryRun(ref, id string, args ...string) (string, error) {
	return n.Run(n.t.Context(), append([]string{"--snapshotter", "lazyerofs", ref, id}, args...)...)
}

func (n *node) run(ref, id string, args ...string) string {
	n.t.Helper()
	out, err := n.tryRun(ref, id, args...)
	require.NoError(n.t, err)
	return out
}

// mounts returns the lazy mounts, the lowest layer first.
func (n *node) mounts() []string {
	n.t.Helper()
	points, err := testenv.Mounts(filepath.Join(n.daemon.Root, "l"))
	require.NoError(n.t, err)
	for i, j := 0, len(points)-1; i < j; i, j = i+1, j-1 {
		points[i], points[j] = points[j], points[i]
	}
	return points
}

// metric returns the line of the daemon's metrics that starts with name, or "".
func (n *node) metric(name string) string {
	n.t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", n.metrics)
	}}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport, Timeout: 10 * time.Second}
	req, err := http.NewRequestWithContext(n.t.Context(), http.MethodGet, "http://daemon/metrics", nil)
	require.NoError(n.t, err)
	resp, err := client.Do(req)
	require.NoError(n.t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(n.t, err)
	require.NoError(n.t, resp.Body.Close())
	for line := range strings.Lines(string(body)) {
		if strings.HasPrefix(line, name) {
			return strings.TrimSpace(line)
		}
	}
	return ""
}
