package proofs

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/containerd/stargz-snapshotter/fs/source"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// trap is a host that nobody may ever talk to.
type trap struct {
	addr string
	hits chan string
}

func setTrap(t *testing.T) *trap {
	t.Helper()
	tr := &trap{hits: make(chan string, 100)}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusNotFound)
	}))
	server.Config.ConnState = func(c net.Conn, state http.ConnState) {
		if state == http.StateNew {
			tr.hits <- c.RemoteAddr().String()
		}
	}
	server.Start()
	tr.addr = server.Listener.Addr().String()
	t.Cleanup(func() {
		server.Close()
		require.Empty(t, tr.hits, "a host was contacted that only a label names")
	})
	return tr
}

// stargzPull pulls with the client library and stargz-snapshotter's own labels,
// as its users do.
func (n *node) stargzPull(ref string) error {
	c, err := containerd.New(n.Address, containerd.WithDefaultNamespace(n.Namespace))
	require.NoError(n.t, err)
	defer c.Close()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	platform, err := platforms.Parse("linux(+erofs)/" + platforms.DefaultSpec().Architecture)
	require.NoError(n.t, err)
	_, err = c.Pull(namespaces.WithNamespace(n.t.Context(), n.Namespace), ref,
		containerd.WithPullUnpack,
		containerd.WithPullSnapshotter("lazyerofs"),
		containerd.WithPlatformMatcher(platforms.Only(platform)),
		containerd.WithImageHandlerWrapper(source.AppendDefaultLabelsHandlerWrapper(ref, 0)),
		containerd.WithResolver(docker.NewResolver(docker.ResolverOptions{Hosts: docker.ConfigureDefaultRegistries(
			docker.WithPlainHTTP(docker.MatchAllHosts), docker.WithClient(&http.Client{Transport: transport}))})),
	)
	return err
}

// Both ways in which clients say where a layer comes from lead to a lazy layer:
// containerd's own labels through the transfer service, and stargz-snapshotter's
// through the client library.
func TestLabelsOfBothClients(t *testing.T) {
	for name, pull := range map[string]func(*node, string) error{
		"transfer service": func(n *node, ref string) error { return n.tryPull(ref) },
		"stargz labels":    (*node).stargzPull,
	} {
		t.Run(name, func(t *testing.T) {
			s := openShop(t, scratch(t))
			img := s.convert(s.tiny(), "lazy", zstdForm)
			n := startNode(t, nil)
			require.NoError(t, pull(n, img.ref))
			requireLazy(t, s, img)
			require.Len(t, n.mounts(), len(img.manifest.Layers))
			n.run(img.ref, "one", img.ready...)
			requireLazy(t, s, img)
		})
	}
}

// A manifest that carries labels of its own, with another host in them, leads
// nobody there, whichever client pulls it.
func TestManifestNamesAnotherHost(t *testing.T) {
	for name, pull := range map[string]func(*node, string) error{
		"transfer service": func(n *node, ref string) error { return n.tryPull(ref) },
		"stargz labels":    (*node).stargzPull,
	} {
		t.Run(name, func(t *testing.T) {
			tr := setTrap(t)
			s := openShop(t, scratch(t))
			img := s.convert(s.tiny(), "lazy", zstdForm)
			evil := s.alter(img, "evil", func(m *ocispec.Manifest, _ *ocispec.Image) {
				for i := range m.Layers {
					a := m.Layers[i].Annotations
					a["containerd.io/snapshot/cri.image-ref"] = tr.addr + "/app:evil"
					a["containerd.io/snapshot/cri.layer-digest"] = m.Layers[i].Digest.String()
					a["containerd.io/snapshot/remote/stargz.reference"] = tr.addr + "/app:evil"
					a["containerd.io/snapshot/remote/stargz.digest"] = m.Layers[i].Digest.String()
					a["containerd.io/snapshot/remote/urls"] = "http://" + tr.addr + "/blob"
					a[chunk.SnapshotPrefix+"image-ref"] = tr.addr + "/app:evil"
					a[chunk.SnapshotPrefix+"layer-digest"] = m.Layers[i].Digest.String()
				}
			})
			n := startNode(t, nil)
			require.NoError(t, pull(n, evil.ref))
			n.run(evil.ref, "one", evil.ready...)
		})
	}
}

// direct speaks to the daemon as containerd does.
func (n *node) direct() snapshots.Snapshotter {
	n.t.Helper()
	conn, err := grpc.NewClient("unix://"+n.daemon.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(n.t, err)
	n.t.Cleanup(func() { require.NoError(n.t, conn.Close()) })
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "lazyerofs")
}

// hostile are labels that no converter writes, as changes to good ones. A value
// of "-" takes a label away.
func hostile(tr *trap, layer ocispec.Descriptor) map[string]map[string]string {
	const (
		cri  = "containerd.io/snapshot/cri."
		own  = chunk.SnapshotPrefix
		huge = "9223372036854775807"
		over = "18446744073709551616"
	)
	ref, sum, at := cri+"image-ref", chunk.LabelIndexDigest, chunk.LabelIndexRange
	long := strings.Repeat("a", 4096)
	other := func(algorithm digest.Algorithm) string { return algorithm.FromString("x").String() }
	return map[string]map[string]string{
		"layer digest climbs":       {cri + "layer-digest": "sha256:../../../../etc/passwd"},
		"layer digest is a path":    {cri + "layer-digest": "../../../../tmp/x"},
		"layer digest with slash":   {cri + "layer-digest": "sha256:" + strings.Repeat("a", 62) + "/."},
		"layer digest sha512":       {cri + "layer-digest": other(digest.SHA512)},
		"layer digest sha384":       {cri + "layer-digest": other(digest.SHA384)},
		"layer digest md5":          {cri + "layer-digest": "md5:d41d8cd98f00b204e9800998ecf8427e"},
		"layer digest upper case":   {cri + "layer-digest": strings.ToUpper(layer.Digest.String())},
		"layer digest empty":        {cri + "layer-digest": ""},
		"layer digest long":         {cri + "layer-digest": "sha256:" + long},
		"layer of nobody":           {cri + "layer-digest": other(digest.SHA256), "containerd.io/snapshot/diff-id": other(digest.SHA256)},
		"manifest digest climbs":    {cri + "manifest-digest": "sha256:../../x", at: "-"},
		"manifest of nobody":        {cri + "manifest-digest": other(digest.SHA256), at: "-"},
		"name climbs":               {ref: "-", own + "image-ref": "-", "containerd.io/snapshot/remote/stargz.reference": "127.0.0.1:1/../../etc:x"},
		"name with a query":         {ref: strings.Split(tr.addr, ":")[0] + "/app?x=http://" + tr.addr + ":x"},
		"name is a URL":             {ref: "http://" + tr.addr + "/app:x"},
		"name is a file":            {ref: "file:///etc/passwd"},
		"name is long":              {ref: long + "/" + long + ":x"},
		"name with a line break":    {ref: "127.0.0.1/app\r\nHost: " + tr.addr + ":x"},
		"name with NUL":             {ref: "127.0.0.1/app\x00:x"},
		"own name elsewhere":        {ref: "not a reference", own + "image-ref": tr.addr + "/app:x", own + "layer-digest": layer.Digest.String()},
		"stargz name elsewhere":     {ref: "not a reference", "containerd.io/snapshot/remote/stargz.reference": tr.addr + "/app:x", "containerd.io/snapshot/remote/stargz.digest": layer.Digest.String()},
		"index range giant":         {at: "0:" + huge},
		"index range overflows":     {at: huge + ":" + over},
		"index range negative":      {at: "-1:100"},
		"index range backwards":     {at: "100:0"},
		"index range empty":         {at: "100:100"},
		"index range of words":      {at: "from:to"},
		"index range long":          {at: strings.Repeat("1", 4096) + ":2"},
		"index range elsewhere":     {at: "0:100"},
		"index digest sha512":       {sum: other(digest.SHA512)},
		"index digest sha384":       {sum: other(digest.SHA384)},
		"index digest md5":          {sum: "md5:d41d8cd98f00b204e9800998ecf8427e"},
		"index digest unknown":      {sum: "crc32:00000000"},
		"index digest climbs":       {sum: "sha256:../../../x"},
		"index digest long":         {sum: "sha256:" + long},
		"blob size giant":           {chunk.LabelBlobSize: huge},
		"blob size overflows":       {chunk.LabelBlobSize: over},
		"blob size negative":        {chunk.LabelBlobSize: "-1"},
		"blob size zero":            {chunk.LabelBlobSize: "0"},
		"blob size small":           {chunk.LabelBlobSize: "7"},
		"media type of another":     {chunk.LabelMediaType: chunk.MediaTypeLayer},
		"media type unknown":        {chunk.LabelMediaType: "application/x-" + long},
		"diff id climbs":            {"containerd.io/snapshot/diff-id": "sha256:../../x"},
		"diff id of another":        {"containerd.io/snapshot/diff-id": other(digest.SHA256)},
		"uncompressed digest other": {chunk.LabelUncompressedDigest: other(digest.SHA512)},
	}
}

// good are the labels with which layer is a hit, filed under target.
func good(img *image, layer ocispec.Descriptor, target string) map[string]string {
	labels := map[string]string{
		snapshots.LabelSnapshotRef:                digest.FromString(target).String(),
		"containerd.io/snapshot/diff-id":          layer.Annotations[chunk.AnnotationUncompressedDigest],
		"containerd.io/snapshot/cri.image-ref":    img.ref,
		"containerd.io/snapshot/cri.layer-digest": layer.Digest.String(),
	}
	for k, v := range layer.Annotations {
		if strings.HasPrefix(k, "containerd.io/snapshot/") {
			labels[k] = v
		}
	}
	return labels
}

// Whatever labels say, the daemon answers in time, never with an error that would
// fail the pull, and never asks another host.
func TestHostileLabels(t *testing.T) {
	tr := setTrap(t)
	s := openShop(t, scratch(t))
	img := s.convert(s.tiny(), "lazy", zstdForm)
	n := startNode(t, map[string]any{"registry": map[string]any{"retry_budget": "2s"}})
	d := n.direct()
	layer := img.manifest.Layers[0]
	prepare := func(labels map[string]string) error {
		ctx, cancel := context.WithTimeout(namespaces.WithNamespace(t.Context(), "x"), 20*time.Second)
		defer cancel()
		mounts, err := d.Prepare(ctx, "extract-1 x", "", snapshots.WithLabels(labels))
		if err != nil {
			return err
		}
		require.NotEmpty(t, mounts)
		require.False(t, mounts[len(mounts)-1].ReadOnly(), "a miss is a place to unpack into")
		return d.Remove(ctx, "extract-1 x")
	}
	for name, changes := range hostile(tr, layer) {
		t.Run(name, func(t *testing.T) {
			labels := good(img, layer, name)
			for k, v := range changes {
				labels[k] = v
				if v == "-" {
					delete(labels, k)
				}
			}
			require.NoError(t, prepare(labels))
			require.Empty(t, n.mounts())
		})
	}
	require.True(t, errdefs.IsAlreadyExists(prepare(good(img, layer, "good"))), "the daemon has gone on working")
}
