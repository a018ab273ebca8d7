package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// lines is what "seq 1 900000" prints.
func lines() string {
	var b strings.Builder
	for i := 1; i <= 900_000; i++ {
		fmt.Fprintln(&b, i)
	}
	return b.String()
}

// big is tiny with a layer of 6 MB on top, most of which nobody has read.
func (n *node) big() (string, *testenv.Image) {
	n.t.Helper()
	recipe, err := testenv.Tiny()
	require.NoError(n.t, err)
	recipe.Name = "big"
	recipe.Steps = append(recipe.Steps, testenv.Step{Name: "lines", Script: `seq 1 900000 >"$ROOT/lines"` + "\n"})
	image, err := recipe.Build(n.t.Context(), func(s string) { n.t.Log("building", s) })
	require.NoError(n.t, err)
	return n.lazy(image, "big", form{Config: differ.Config{Form: differ.Raw}})
}

// held is a container that waits before it reads.
type held struct {
	n         *node
	fifo, out string
	id        string
	w         *os.File // nil until somebody waited for the reader
}

// hold starts a container of ref that will print files once it is released.
func (n *node) hold(ref, id string, files ...string) *held {
	n.t.Helper()
	dir := n.t.TempDir()
	h := &held{n: n, fifo: filepath.Join(dir, "fifo"), out: filepath.Join(dir, "out"), id: id}
	require.NoError(n.t, unix.Mkfifo(h.fifo, 0o600))
	n.ctr(append([]string{"run", "--detach", "--snapshotter", "lazyerofs", "--log-uri", "file://" + h.out,
		"--mount", "type=bind,src=" + h.fifo + ",dst=/run/fifo,options=rbind",
		ref, id, "/hello", "/run/fifo"}, files...)...)
	return h
}

// release lets the container read, waits for its end and returns its output.
func (h *held) release() string {
	h.n.t.Helper()
	h.let()
	return h.wait()
}

// let lets the container read.
func (h *held) let() {
	h.n.t.Helper()
	w := h.w
	if w == nil {
		var err error
		w, err = os.OpenFile(h.fifo, os.O_WRONLY, 0)
		require.NoError(h.n.t, err)
	}
	_, err := w.WriteString("go\n")
	require.NoError(h.n.t, err)
	require.NoError(h.n.t, w.Close())
}

// wait waits for the end of the container and returns its output.
func (h *held) wait() string {
	h.n.t.Helper()
	require.Eventually(h.n.t, func() bool {
		out, err := h.n.Ctr(h.n.t.Context(), "tasks", "list")
		return err == nil && strings.Contains(out, h.id) && strings.Contains(out, "STOPPED")
	}, time.Minute, 20*time.Millisecond)
	h.n.ctr("tasks", "delete", h.id)
	h.n.ctr("containers", "delete", h.id)
	b, err := os.ReadFile(h.out)
	require.NoError(h.n.t, err)
	return string(b)
}

const heldOutput = "/run/fifo: go\n"

// The daemon is replaced under a running container whose layers are not complete.
func TestDaemonReplacedUnderAContainer(t *testing.T) {
	n := start(t, nil)
	ref, image := n.big()
	n.pull(ref)
	box := n.hold(ref, "box", "/lines")
	top := image.Layers[3].Digest.String()
	all, _ := n.layerGets(image)
	before := all[top]

	require.NoError(t, n.daemon.Replace(t.Context()))
	require.NoError(t, testenv.DropCaches())
	require.Equal(t, heldOutput+"/lines: "+lines(), box.release())
	all, whole := n.layerGets(image)
	require.Greater(t, all[top], before, "nothing was left to fetch")
	require.Empty(t, whole)
	require.Equal(t, testenv.TinyOutput, n.run(ref, "next", image.Ready...), "a new container")
	log, err := n.daemon.Log()
	require.NoError(t, err)
	require.NotContains(t, log, "quarantined")
}

// containerd is restarted under a running container, then everything goes on.
func TestContainerdRestart(t *testing.T) {
	n := start(t, nil)
	ref, image := n.big()
	n.pull(ref)
	box := n.hold(ref, "box", "/lines")
	require.NoError(t, n.Restart(t.Context()))
	require.Equal(t, heldOutput+"/lines: "+lines(), box.release())
	require.Equal(t, testenv.TinyOutput, n.run(ref, "next", image.Ready...))
	_, whole := n.layerGets(image)
	require.Empty(t, whole)
}

// After a reboot nothing is mounted; the first container brings its layers back.
func TestLayersComeBackAfterAReboot(t *testing.T) {
	n := start(t, nil)
	plainRef, plain := n.tiny()
	ref, image := n.lazy(plain, "lazy", form{})
	n.pull(plainRef)
	n.pull(ref)
	require.NoError(t, testenv.UnmountAll(n.daemon.Root))
	require.NoError(t, n.daemon.Replace(t.Context()))
	mounts, err := testenv.Mounts(n.daemon.Root)
	require.NoError(t, err)
	require.Empty(t, mounts)
	require.Equal(t, testenv.TinyOutput, n.run(plainRef, "unpacked", image.Ready...))
	require.Equal(t, testenv.TinyOutput, n.run(ref, "lazy", image.Ready...))
}

// Removing an image takes its mounts and its snapshots away, in the collection
// that containerd runs at once.
func TestRemovedImageLeavesNoMounts(t *testing.T) {
	n := start(t, nil)
	plainRef, plain := n.tiny()
	ref, image := n.lazy(plain, "lazy", form{})
	n.pull(plainRef)
	n.pull(ref)
	require.Equal(t, testenv.TinyOutput, n.run(plainRef, "unpacked", image.Ready...))
	mounts, err := testenv.Mounts(n.daemon.Root)
	require.NoError(t, err)
	require.Len(t, mounts, 2*len(image.Layers))

	n.ctr("images", "remove", "--sync", plainRef, ref)
	mounts, err = testenv.Mounts(n.daemon.Root)
	require.NoError(t, err)
	require.Empty(t, mounts)
	require.Empty(t, n.snapshots())
	for _, dir := range []string{"l", "snapshots"} {
		left, err := os.ReadDir(filepath.Join(n.daemon.Root, dir))
		require.NoError(t, err)
		require.Empty(t, left)
	}
	n.reg.Reset()
	n.pull(ref)
	n.requireLazy(image)
	require.Equal(t, testenv.TinyOutput, n.run(ref, "again", image.Ready...))
}

// Two namespaces share lazy layers; each may go first.
func TestSecondNamespace(t *testing.T) {
	n := start(t, nil)
	_, plain := n.tiny()
	ref, image := n.lazy(plain, "lazy", form{})
	n.pull(ref)
	other := *n.Containerd
	other.Namespace += "-b"
	second := func(args ...string) {
		_, err := other.Ctr(t.Context(), args...)
		require.NoError(t, err)
	}
	mounts, err := testenv.Mounts(n.daemon.Root)
	require.NoError(t, err)
	n.reg.Reset()
	second("images", "pull", "--plain-http", "--snapshotter", "lazyerofs", ref)
	all, _ := n.layerGets(image)
	require.Empty(t, all, "the second namespace fetched layers again")
	again, err := testenv.Mounts(n.daemon.Root)
	require.NoError(t, err)
	require.Equal(t, mounts, again)
	snapshots, err := other.Ctr(t.Context(), "snapshots", "--snapshotter", "lazyerofs", "list")
	require.NoError(t, err)
	require.NotContains(t, snapshots, "Active")

	n.ctr("images", "remove", "--sync", ref)
	require.Empty(t, n.snapshots())
	t.Cleanup(func() {
		// The private containerd cleans up after its own namespace only.
		for _, dir := range []string{"/run/containerd/runc/"} {
			require.NoError(t, os.RemoveAll(dir+other.Namespace))
		}
		groups, err := filepath.Glob("/sys/fs/cgroup/*/" + other.Namespace)
		require.NoError(t, err)
		for _, g := range groups {
			if err := os.Remove(g); err != nil {
				require.ErrorIs(t, err, os.ErrNotExist)
			}
		}
	})
	got, err := other.Run(t.Context(), append([]string{"--snapshotter", "lazyerofs", ref, "two"}, image.Ready...)...)
	require.NoError(t, err)
	require.Equal(t, testenv.TinyOutput, got)
	second("images", "remove", "--sync", ref)
	mounts, err = testenv.Mounts(n.daemon.Root)
	require.NoError(t, err)
	require.Empty(t, mounts)
}

// The registry is gone: what is complete runs on, also after a restart.
func TestCompleteLayersNeedNoRegistry(t *testing.T) {
	n := start(t, nil)
	ref, image := n.big()
	n.pull(ref)
	require.Equal(t, "/lines: "+lines(), n.run(ref, "one", "/hello", "/lines"))
	require.Equal(t, testenv.TinyOutput, n.run(ref, "two", image.Ready...))
	n.reg.Refuse(refuseAll)
	require.NoError(t, testenv.UnmountAll(n.daemon.Root))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, n.daemon.Replace(ctx))
	require.NoError(t, testenv.DropCaches())
	require.Equal(t, testenv.TinyOutput, n.run(ref, "three", image.Ready...))
}
