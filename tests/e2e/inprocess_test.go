package e2e

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/pelletier/go-toml/v2"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// inside builds tests/examples/containerd: containerd with lazyerofs in it.
var inside = sync.OnceValues(func() (string, error) {
	root, err := testenv.Root()
	if err != nil {
		return "", err
	}
	path := filepath.Join(root, "bin", "containerd-lazyerofs")
	return path, testenv.BuildExample(context.Background(), path)
})

// startInside makes a node whose containerd has lazyerofs in it, as
// deploy/containerd/in-process.toml configures it, and no daemon.
func startInside(t *testing.T, supervise bool) *node {
	t.Helper()
	testenv.RequireRoot(t)
	binary, err := inside()
	require.NoError(t, err)
	// The shim is beside the pinned containerd.
	pinned := testenv.MustTool(t, "containerd")
	t.Setenv("PATH", filepath.Dir(pinned)+":"+os.Getenv("PATH"))
	dir, err := os.MkdirTemp("", "e2e-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	testenv.VerifyNoLeaks(t, dir)
	reg, err := testenv.StartRegistry(filepath.Join(dir, "reg"))
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, reg.Close())
		http.DefaultClient.CloseIdleConnections() //nolint:forbidigo // it makes no request: the client that pushed images is oras-go's
	})
	root, err := testenv.Root()
	require.NoError(t, err)
	b, err := os.ReadFile(filepath.Join(root, "deploy", "containerd", "in-process.toml"))
	require.NoError(t, err)
	config := map[string]any{"debug": map[string]any{"level": "debug"}}
	require.NoError(t, toml.Unmarshal(b, &config))
	n := &node{t: t, reg: reg}
	n.Containerd, err = testenv.StartContainerd(t.Context(), filepath.Join(dir, "c"), testenv.ContainerdOptions{
		Binary: binary, Supervise: supervise, Config: config,
	})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, n.Stop())
		if t.Failed() {
			log, err := n.Log()
			t.Logf("containerd's log (%v):\n%s", err, log)
		}
	})
	return n
}

// The demo's job without a daemon: a converted image runs lazily, a plain one is
// unpacked by the differ, and a commit of a lazy container is lazy again.
func TestInsideContainerd(t *testing.T) {
	n := startInside(t, true)
	list := n.ctr("plugins", "list")
	require.Regexp(t, `io\.containerd\.snapshotter\.v1 +lazyerofs +\S+ +ok`, list)
	require.Regexp(t, `io\.containerd\.differ\.v1 +lazyerofs +\S+ +ok`, list)

	plainRef, plain := n.tiny()
	base, image := n.lazy(plain, "lazy", form{})
	n.pull(base)
	n.requireLazy(image)
	box := n.hold(base, "box", "/etc/new")
	box.await()
	disturb(t, n.rootOf("box"))
	require.NoError(t, n.reg.Settle(t.Context(), time.Second/2))
	n.reg.Reset()
	ref := n.reg.Addr() + "/tiny:committed"
	layer := n.commit("box", base, ref)
	require.Empty(t, n.reg.Log(), "something was fetched")
	require.Equal(t, chunk.MediaTypeLayerZstd, layer.MediaType)
	require.Equal(t, heldOutput+"/etc/new: five\n", box.release())
	require.Equal(t, disturbed, n.run(ref, "again", askDisturbed...))
	require.Equal(t, testenv.TinyOutput, n.run(base, "one", image.Ready...))
	_, whole := n.layerGets(image)
	require.Empty(t, whole, "layers were downloaded")

	n.pull(plainRef)
	require.Equal(t, testenv.TinyOutput, n.run(plainRef, "two", plain.Ready...))
	require.NotEmpty(t, n.snapshots())
	n.ctr("images", "remove", "--sync", base, ref, plainRef)
	require.Empty(t, n.snapshots())
}

// twice is tiny with two layers of some MB on top, one file in each.
func (n *node) twice() (string, *testenv.Image) {
	n.t.Helper()
	recipe, err := testenv.Tiny()
	require.NoError(n.t, err)
	recipe.Name = "twice"
	for _, name := range []string{"lines", "more"} {
		recipe.Steps = append(recipe.Steps, testenv.Step{Name: name, Script: `seq 1 900000 >"$ROOT/` + name + "\"\n"})
	}
	image, err := recipe.Build(n.t.Context(), func(s string) { n.t.Log("building", s) })
	require.NoError(n.t, err)
	return n.lazy(image, "twice", form{Config: differ.Config{Form: differ.Raw}})
}

// views makes snapshots of an image without its uppermost two layers, and without
// the uppermost. Neither is what a container wrote, so comparing them is left to
// containerd's own differ, which mounts and reads them.
func (n *node) views(ref string) (low, top []mount.Mount) {
	n.t.Helper()
	ctx, c := n.client()
	img, err := c.GetImage(ctx, ref)
	require.NoError(n.t, err)
	ids, err := img.RootFS(ctx)
	require.NoError(n.t, err)
	sn := c.SnapshotService("lazyerofs")
	// Or containerd collects what no container uses.
	root := snapshots.WithLabels(map[string]string{"containerd.io/gc.root": time.Now().Format(time.RFC3339)})
	low, err = sn.View(ctx, "low", identity.ChainID(ids[:len(ids)-2]).String(), root)
	require.NoError(n.t, err)
	top, err = sn.View(ctx, "top", identity.ChainID(ids[:len(ids)-1]).String(), root)
	require.NoError(n.t, err)
	return low, top
}

// killInside kills containerd with -9 when it has taken reads that nobody can
// answer, and returns when the next one serves.
func (n *node) killInside(read func()) {
	n.t.Helper()
	n.reg.Refuse(refuseAll)
	require.NoError(n.t, testenv.DropCaches())
	pid, err := n.Child(n.t.Context(), 0)
	require.NoError(n.t, err)
	read()
	unanswered(n.t, n.Taken)
	require.NoError(n.t, unix.Kill(pid, unix.SIGKILL))
	n.reg.Refuse(nil)
	ctx, cancel := context.WithTimeout(n.t.Context(), time.Minute)
	defer cancel()
	_, err = n.Child(ctx, pid)
	require.NoError(n.t, err, "it does not end")
	require.NoError(n.t, n.Await(ctx))
}

// containerd is killed with a read of a container in its hands, and once more with
// a read of its own: it compares layers by walking them. The next one answers the
// first, and the second does not keep it from starting.
func TestContainerdKilledWithLazyerofsInside(t *testing.T) {
	n := startInside(t, true)
	ref, image := n.twice()
	n.pull(ref)
	box := n.hold(ref, "box", "/more")
	box.await()
	n.killInside(box.let)
	require.Equal(t, heldOutput+"/more: "+lines(), box.wait())

	low, top := n.views(ref)
	ctx, c := n.client()
	failed := make(chan error, 1)
	compare := func() (ocispec.Descriptor, error) {
		return c.DiffService().Compare(ctx, low, top, diff.WithMediaType(ocispec.MediaTypeImageLayer))
	}
	n.killInside(func() {
		go func() { // ends with the connection
			_, err := compare()
			failed <- err
		}()
	})
	require.Error(t, <-failed)
	ctx, done, err := c.WithLease(ctx) // or containerd collects what came out
	require.NoError(t, err)
	desc, err := compare()
	require.NoError(t, err, "containerd cannot read what it serves")
	b, err := content.ReadBlob(ctx, c.ContentStore(), desc)
	require.NoError(t, err)
	require.NoError(t, done(ctx))
	require.Contains(t, string(b), lines())

	require.Equal(t, testenv.TinyOutput, n.run(ref, "next", image.Ready...))
	log, err := n.Log()
	require.NoError(t, err)
	require.Contains(t, log, "answering reads that the predecessor had taken")
	require.NotContains(t, log, "quarantined")
	for _, name := range []string{"low", "top"} {
		require.NoError(t, c.SnapshotService("lazyerofs").Remove(ctx, name))
	}
}

// Without a keeper of descriptors nothing is loaded lazily, because the end of
// containerd would turn what is missing into zeros.
func TestInsideContainerdWithoutAKeeper(t *testing.T) {
	n := startInside(t, false)
	_, plain := n.tiny()
	ref, image := n.lazy(plain, "lazy", form{})
	n.pull(ref)
	_, whole := n.layerGets(image)
	require.Len(t, whole, len(image.Layers), "layers were not downloaded")
	require.Equal(t, testenv.TinyOutput, n.run(ref, "one", image.Ready...))
	log, err := n.Log()
	require.NoError(t, err)
	require.Contains(t, log, "nobody keeps descriptors for containerd")
	require.NoError(t, n.Restart(t.Context()))
	require.Equal(t, testenv.TinyOutput, n.run(ref, "two", image.Ready...))
}

// The defaults that containerd prints for our plugins are such that it reads them.
func TestInsideContainerdDefaults(t *testing.T) {
	binary, err := inside()
	require.NoError(t, err)
	out, err := exec.CommandContext(t.Context(), binary, "config", "default").Output()
	require.NoError(t, err)
	require.Contains(t, string(out), "[plugins.'io.containerd.snapshotter.v1.lazyerofs'.snapshotter]\n      prepare_timeout = '20s'")
	file := filepath.Join(t.TempDir(), "c.toml")
	require.NoError(t, os.WriteFile(file, out, 0o600))
	again, err := exec.CommandContext(t.Context(), binary, "--config", file, "config", "dump").Output()
	require.NoError(t, err)
	require.Contains(t, string(again), "prepare_timeout = '20s'")
}
