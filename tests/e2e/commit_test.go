package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// client returns the client library's view of the node.
func (n *node) client() (context.Context, *containerd.Client) {
	n.t.Helper()
	c, err := containerd.New(n.Address, containerd.WithDefaultNamespace(n.Namespace))
	require.NoError(n.t, err)
	n.t.Cleanup(func() { require.NoError(n.t, c.Close()) })
	return namespaces.WithNamespace(n.t.Context(), n.Namespace), c
}

// rootOf is the root directory of a running container, through which tests write
// as the container would.
func (n *node) rootOf(id string) string {
	n.t.Helper()
	ctx, c := n.client()
	box, err := c.LoadContainer(ctx, id)
	require.NoError(n.t, err)
	task, err := box.Task(ctx, nil)
	require.NoError(n.t, err)
	return filepath.Join("/proc", digits(task.Pid()), "root")
}

func digits(n uint32) string {
	b, _ := json.Marshal(n) // a number always has a form
	return string(b)
}

// disturb changes a container's files: a new one, a deleted one, a replaced
// directory, hard links, a device, an attribute.
func disturb(t *testing.T, root string) {
	t.Helper()
	require.NoError(t, os.Remove(root+"/etc/kept"))
	require.NoError(t, os.WriteFile(root+"/etc/new", []byte("five\n"), 0o600))
	require.NoError(t, os.Link(root+"/etc/new", root+"/etc/new2"))
	require.NoError(t, os.RemoveAll(root+"/old"))
	require.NoError(t, os.Mkdir(root+"/old", 0o711))
	require.NoError(t, os.WriteFile(root+"/old/again", []byte("six\n"), 0o644))
	require.NoError(t, unix.Mknod(root+"/etc/dev", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	require.NoError(t, unix.Setxattr(root+"/etc/new", "user.k", []byte("v"), 0))
}

// disturbed is what the workload sees afterwards, and how it is asked.
const disturbed = `open /etc/kept: no such file or directory
/etc/linked: one
/etc/new: five
/etc/new2: five
open /old/shown: no such file or directory
/old/again: six
`

var askDisturbed = []string{"/hello", "/etc/kept", "/etc/linked", "/etc/new", "/etc/new2", "/old/shown", "/old/again"}

// commit does what nerdctl commit does: it pauses the container, compares its
// snapshot with its parent, and makes an image of its image and the new layer.
func (n *node) commit(id, base, ref string) ocispec.Descriptor {
	n.t.Helper()
	ctx, c := n.client()
	ctx, done, err := c.WithLease(ctx)
	require.NoError(n.t, err)
	defer func() { require.NoError(n.t, done(ctx)) }()
	box, err := c.LoadContainer(ctx, id)
	require.NoError(n.t, err)
	info, err := box.Info(ctx)
	require.NoError(n.t, err)
	task, err := box.Task(ctx, nil)
	require.NoError(n.t, err)
	require.NoError(n.t, task.Pause(ctx))
	layer, err := rootfs.CreateDiff(ctx, info.SnapshotKey, c.SnapshotService("lazyerofs"), c.DiffService())
	require.NoError(n.t, errors.Join(err, task.Resume(ctx)))

	store := c.ContentStore()
	stat, err := store.Info(ctx, layer.Digest)
	require.NoError(n.t, err)
	diffID, err := digest.Parse(stat.Labels["containerd.io/uncompressed"])
	require.NoError(n.t, err)

	img, err := c.ImageService().Get(ctx, base)
	require.NoError(n.t, err)
	var manifest ocispec.Manifest
	n.load(ctx, store, img.Target, &manifest)
	var config ocispec.Image
	n.load(ctx, store, manifest.Config, &config)
	config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diffID)
	manifest.Layers = append(manifest.Layers, layer)
	manifest.Config = n.store(ctx, store, manifest.Config.MediaType, config, nil)
	refs := map[string]string{"containerd.io/gc.ref.content.0": manifest.Config.Digest.String()}
	for i, l := range manifest.Layers {
		refs["containerd.io/gc.ref.content."+digits(uint32(i+1))] = l.Digest.String()
	}
	target := n.store(ctx, store, img.Target.MediaType, manifest, refs)
	_, err = c.ImageService().Create(ctx, images.Image{Name: ref, Target: target})
	require.NoError(n.t, err)
	return layer
}

func (n *node) load(ctx context.Context, store content.Store, desc ocispec.Descriptor, v any) {
	n.t.Helper()
	b, err := content.ReadBlob(ctx, store, desc)
	require.NoError(n.t, err)
	require.NoError(n.t, json.Unmarshal(b, v))
}

func (n *node) store(ctx context.Context, store content.Store, mediaType string, v any, labels map[string]string) ocispec.Descriptor {
	n.t.Helper()
	b, err := json.Marshal(v)
	require.NoError(n.t, err)
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	require.NoError(n.t, content.WriteBlob(ctx, store, desc.Digest.String(), bytes.NewReader(b), desc, content.WithLabels(labels)))
	return desc
}

// events is how often the kernel has asked the daemon about reads of lazy layers.
func (n *node) events(socket string) string {
	n.t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(n.t.Context(), http.MethodGet, "http://daemon/metrics", nil)
	require.NoError(n.t, err)
	resp, err := (&http.Client{Transport: transport}).Do(req)
	require.NoError(n.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(n.t, err)
	lines := regexp.MustCompile(`(?m)^lazyerofs_(driver_events|remote_bytes)_total.*$`).FindAllString(string(b), -1)
	require.NotEmpty(n.t, lines)
	return strings.Join(lines, "\n")
}

// settled returns what counts says once that has not changed for half a second: threads
// of a container that waits, and read-ahead, go on for a while.
func settled(counts func() string) string {
	tick, last, same := time.NewTicker(20*time.Millisecond), counts(), 0
	defer tick.Stop()
	for same < 25 {
		<-tick.C
		same++
		if now := counts(); now != last {
			last, same = now, 0
		}
	}
	return last
}

// await returns when the container waits in its read, with all in its memory that
// this takes.
func (h *held) await() {
	h.n.t.Helper()
	require.Eventually(h.n.t, func() bool {
		var err error
		h.w, err = os.OpenFile(h.fifo, os.O_WRONLY|unix.O_NONBLOCK, 0) // fails until somebody reads
		return err == nil
	}, time.Minute, 10*time.Millisecond)
}

// startCounting makes a node whose counters can be read.
func startCounting(t *testing.T) (*node, string) {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "lazyerofs-test-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	socket := filepath.Join(dir, "m.sock")
	return start(t, map[string]any{"metrics": map[string]any{"address": "unix:" + socket}}), socket
}

// A running container whose layers are not here is committed: nothing below its
// upper directory is read, and the new image runs lazily on another machine.
func TestCommitOfALazyContainer(t *testing.T) {
	n, socket := startCounting(t)
	base, image := n.big()
	n.pull(base)
	box := n.hold(base, "box", "/etc/new")
	box.await()
	disturb(t, n.rootOf("box"))

	require.NoError(t, testenv.DropCaches()) // so that each read below asks the daemon
	before := settled(func() string { return n.events(socket) })
	n.reg.Reset()
	ref := n.reg.Addr() + "/tiny:committed"
	layer := n.commit("box", base, ref)
	require.Equal(t, before, n.events(socket), "the kernel asked for data of a lazy layer")
	require.Empty(t, n.reg.Log(), "something was fetched")
	require.Equal(t, chunk.MediaTypeLayerZstd, layer.MediaType)

	n.ctr("images", "push", "--plain-http", ref)
	for _, r := range n.reg.Log() {
		require.False(t, r.Method == http.MethodGet && r.Blob() != "", "pushing fetched %s", r.Path)
	}
	require.Equal(t, heldOutput+"/etc/new: five\n", box.release(), "the container went on")

	fresh := n.another()
	n.reg.Reset()
	fresh.pull(ref)
	whole := &testenv.Image{Layers: append(append([]ocispec.Descriptor{}, image.Layers...), layer)}
	fresh.requireLazy(whole)
	require.Equal(t, disturbed, fresh.run(ref, "one", askDisturbed...))
	_, full := fresh.layerGets(whole)
	require.Empty(t, full, "layers were downloaded")
	require.Equal(t, disturbed, n.run(ref, "two", askDisturbed...), "and where it was made")
}

// ctr snapshots diff gives a layer in each form without reading what is below.
func TestSnapshotsDiff(t *testing.T) {
	n, socket := startCounting(t)
	ref, _ := n.big()
	n.pull(ref)
	box := n.hold(ref, "box", "/lines")
	box.await()
	disturb(t, n.rootOf("box"))
	require.NoError(t, testenv.DropCaches()) // so that each read below asks the daemon
	before := settled(func() string { return n.events(socket) })
	n.reg.Reset()
	out := func(mediaType string) []byte {
		return []byte(n.ctr("snapshots", "--snapshotter", "lazyerofs", "diff", "--media-type", mediaType, "box"))
	}
	zr, err := gzip.NewReader(bytes.NewReader(out(ocispec.MediaTypeImageLayerGzip)))
	require.NoError(t, err)
	names := []string{}
	for r := tar.NewReader(zr); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		names = append(names, h.Name)
	}
	require.Subset(t, names, []string{"etc/", "etc/.wh.kept", "etc/new", "etc/new2", "etc/dev", "old/", "old/.wh..wh..opq", "old/again"})

	raw := out(chunk.MediaTypeLayer)
	require.Equal(t, []byte{0xe2, 0xe1, 0xf5, 0xe0}, raw[1024:1028])
	require.Equal(t, raw, out(chunk.MediaTypeLayer), "the same again")
	require.Equal(t, []byte{0x28, 0xb5, 0x2f, 0xfd}, out(chunk.MediaTypeLayerZstd)[:4])
	require.Equal(t, before, n.events(socket), "the kernel asked for data of a lazy layer")
	require.Empty(t, n.reg.Log())
	require.Equal(t, heldOutput+"/lines: "+lines(), box.release())
}

// What no upper directory says is left to containerd: two snapshots that are not
// parent and child, and layers that no container wrote.
func TestOtherComparisonsGoToContainerd(t *testing.T) {
	n := start(t, nil)
	ref, image := n.tiny()
	lazy, _ := n.lazy(image, "lazy", form{})
	n.pull(ref)
	n.pull(lazy)
	ctx, c := n.client()
	img, err := c.GetImage(ctx, lazy)
	require.NoError(t, err)
	ids, err := img.RootFS(ctx)
	require.NoError(t, err)
	ctx, done, err := c.WithLease(ctx) // or containerd collects what no container uses
	require.NoError(t, err)
	defer func() { require.NoError(t, done(ctx)) }()
	sn := c.SnapshotService("lazyerofs")
	top, err := sn.View(ctx, "top", identity.ChainID(ids).String())
	require.NoError(t, err)
	low, err := sn.View(ctx, "low", ids[0].String())
	require.NoError(t, err)
	desc, err := c.DiffService().Compare(ctx, low, top, diff.WithMediaType(ocispec.MediaTypeImageLayer))
	require.NoError(t, err)
	b, err := content.ReadBlob(ctx, c.ContentStore(), desc)
	require.NoError(t, err)
	require.Contains(t, string(b), "etc/linked")
	log, err := n.daemon.Log()
	require.NoError(t, err)
	require.Contains(t, log, "left to containerd's walking differ")
	require.NoError(t, sn.Remove(ctx, "top"))
	require.NoError(t, sn.Remove(ctx, "low"))
}

// A checkpoint of a container's files, restored by containerd's own client.
func TestCheckpointOfALazyContainer(t *testing.T) {
	n := start(t, nil)
	ref, _ := n.big()
	n.pull(ref)
	box := n.hold(ref, "box", "/etc/new")
	disturb(t, n.rootOf("box"))
	ctx, c := n.client()
	container, err := c.LoadContainer(ctx, "box")
	require.NoError(t, err)
	image, err := container.Checkpoint(ctx, "example.com/checkpoint:1", containerd.WithCheckpointImage, containerd.WithCheckpointRuntime, containerd.WithCheckpointRW)
	require.NoError(t, err)
	require.Equal(t, heldOutput+"/etc/new: five\n", box.release())

	again, err := c.Restore(ctx, "box2", image, containerd.WithRestoreImage, containerd.WithRestoreRuntime, containerd.WithRestoreRW)
	require.NoError(t, err)
	mounts, err := c.SnapshotService("lazyerofs").Mounts(ctx, "box2")
	require.NoError(t, err)
	require.NoError(t, mount.WithTempMount(ctx, mounts, func(root string) error {
		got, err := os.ReadFile(root + "/etc/new")
		require.NoError(t, err)
		require.Equal(t, "five\n", string(got))
		require.NoFileExists(t, root+"/etc/kept")
		return nil
	}))
	require.NoError(t, again.Delete(ctx, containerd.WithSnapshotCleanup))
}
