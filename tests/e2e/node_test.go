package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// TestMain builds the programs, so that what is tested is what is in the tree.
func TestMain(m *testing.M) {
	root, err := testenv.Root()
	if err == nil {
		cmd := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(root, "bin")+"/", "./cmd/...")
		cmd.Dir, cmd.Stdout, cmd.Stderr = root, os.Stderr, os.Stderr
		err = cmd.Run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "building the programs:", err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, testenv.IgnoreRegistry())
}

// node is a machine of our own: registry, daemon and containerd.
type node struct {
	*testenv.Containerd
	t      *testing.T
	reg    *testenv.Registry
	daemon *testenv.Daemon
}

// start makes a node. settings go into the daemon's configuration.
func start(t *testing.T, settings map[string]any) *node {
	t.Helper()
	return startBinary(t, settings, "")
}

// startBinary is start with a daemon that is not the tree's own, unless binary is
// empty.
func startBinary(t *testing.T, settings map[string]any, binary string) *node {
	t.Helper()
	testenv.RequireRoot(t)
	dir, err := os.MkdirTemp("", "e2e-") // short: its paths stand in mount options
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	testenv.VerifyNoLeaks(t, dir)
	reg, err := testenv.StartRegistry(filepath.Join(dir, "reg"))
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, reg.Close())
		http.DefaultClient.CloseIdleConnections() //nolint:forbidigo // it makes no request: the client that pushed images is oras-go's
	})
	return startAt(t, reg, dir, settings, binary)
}

// another makes a fresh node that pulls from the same registry.
func (n *node) another() *node {
	n.t.Helper()
	dir, err := os.MkdirTemp("", "e2e-")
	require.NoError(n.t, err)
	n.t.Cleanup(func() { require.NoError(n.t, os.RemoveAll(dir)) })
	testenv.VerifyNoLeaks(n.t, dir)
	return startAt(n.t, n.reg, dir, nil, "")
}

// startAt makes a node without a registry of its own below dir.
func startAt(t *testing.T, reg *testenv.Registry, dir string, settings map[string]any, binary string) *node {
	t.Helper()
	n := &node{t: t, reg: reg}
	var err error
	// The daemon is told where containerd will be before it is there, as on any node.
	sock := filepath.Join(dir, "c.sock")
	config := map[string]any{"containerd": map[string]any{"address": sock}, "log_level": "debug"}
	for k, v := range settings {
		config[k] = v
	}
	n.daemon, err = testenv.StartDaemon(t.Context(), filepath.Join(dir, "d"), testenv.DaemonOptions{Supervise: true, Config: config, Binary: binary})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, n.daemon.Stop())
		if t.Failed() {
			log, err := n.daemon.Log()
			t.Logf("the daemon's log (%v):\n%s", err, log)
		}
	})
	n.Containerd, err = testenv.StartContainerd(t.Context(), filepath.Join(dir, "c"), testenv.ContainerdOptions{Daemon: n.daemon})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, n.Stop()) })
	require.NoError(t, os.Symlink(n.Address, sock))
	return n
}

// ctr runs ctr and fails the test if it fails.
func (n *node) ctr(args ...string) string {
	n.t.Helper()
	out, err := n.Ctr(n.t.Context(), args...)
	require.NoError(n.t, err)
	return out
}

// pull pulls ref for our snapshotter.
func (n *node) pull(ref string) {
	n.t.Helper()
	n.ctr("images", "pull", "--plain-http", "--snapshotter", "lazyerofs", ref)
}

// run runs the workload of ref in a container and returns its output.
func (n *node) run(ref, id string, args ...string) string {
	n.t.Helper()
	out, err := n.Run(n.t.Context(), append([]string{"--snapshotter", "lazyerofs", ref, id}, args...)...)
	require.NoError(n.t, err)
	return out
}

// tiny pushes the small image and returns its reference.
func (n *node) tiny() (string, *testenv.Image) {
	n.t.Helper()
	recipe, err := testenv.Tiny()
	require.NoError(n.t, err)
	image, err := recipe.Build(n.t.Context(), func(s string) { n.t.Log("building", s) })
	require.NoError(n.t, err)
	ref := n.reg.Addr() + "/tiny:plain"
	require.NoError(n.t, image.Push(context.WithoutCancel(n.t.Context()), ref))
	n.reg.Reset()
	return ref, image
}

// layerGets counts the GET requests for each layer, and those without a range.
func (n *node) layerGets(image *testenv.Image) (all, whole map[string]int) {
	all, whole = map[string]int{}, map[string]int{}
	for _, l := range image.Layers {
		for _, r := range n.reg.Log() {
			if r.Method == http.MethodGet && r.Blob() == l.Digest.String() {
				all[r.Blob()]++
				if r.Range == "" {
					whole[r.Blob()]++
				}
			}
		}
	}
	return all, whole
}

// snapshots returns the committed snapshots as ctr prints them.
func (n *node) snapshots() []string {
	var out []string
	for _, line := range strings.Split(n.ctr("snapshots", "--snapshotter", "lazyerofs", "list"), "\n") {
		if strings.Contains(line, "Committed") {
			out = append(out, line)
		}
	}
	return out
}

// refuseAll is a registry that is down.
func refuseAll(*http.Request) int { return http.StatusServiceUnavailable }
