package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// dockerfile changes the files of the tiny image as disturb does.
const dockerfile = `FROM %s
COPY busybox /bin/busybox
RUN ["/bin/busybox", "sh", "-ec", "rm /etc/kept; echo five >/etc/new; ln /etc/new /etc/new2; rm -r /old; mkdir /old; echo six >/old/again"]
`

// BuildKit builds on a converted image, with our snapshotter and differ below its
// containerd worker. It downloads the base whole: its puller fetches every blob of a
// media type that it does not know (filterLayerBlobs in util/pull). What it pushes has
// the base's layers, without the annotations that make them lazy, and tars; it runs,
// and converted it is lazy again as a whole, with the very layers that the base had.
func TestBuildOnALazyImage(t *testing.T) {
	n := start(t, nil)
	_, plain := n.tiny()
	base, image := n.lazy(plain, "base", form{Config: differ.Config{Form: differ.Zstd}})
	built := n.reg.Addr() + "/built:1"
	n.build(base, built)
	other := n.another()
	other.pull(built)
	require.Equal(t, disturbed, other.run(built, "one", askDisturbed...))

	lazy := n.reg.Addr() + "/built:lazy"
	whole := &testenv.Image{Layers: n.convert(built, lazy)}
	require.Len(t, whole.Layers, len(image.Layers)+2)
	for i, l := range image.Layers {
		require.Equal(t, l.Digest, whole.Layers[i].Digest, "a layer of the base")
	}
	fresh := n.another()
	n.reg.Reset()
	fresh.pull(lazy)
	fresh.requireLazy(whole)
	require.Equal(t, disturbed, fresh.run(lazy, "one", askDisturbed...))
	_, full := fresh.layerGets(whole)
	require.Empty(t, full, "layers were downloaded")
}

// build builds dockerfile on base in the node's containerd and pushes it as ref.
func (n *node) build(base, ref string) {
	n.t.Helper()
	dir := n.t.TempDir()
	kit, err := testenv.StartBuildKit(n.t.Context(), filepath.Join(dir, "kit"), n.Containerd, n.reg.Addr())
	require.NoError(n.t, err)
	defer func() { require.NoError(n.t, kit.Stop()) }()
	src := filepath.Join(dir, "src")
	require.NoError(n.t, os.Mkdir(src, 0o755))
	busybox, err := os.ReadFile("/bin/busybox")
	require.NoError(n.t, err)
	require.NoError(n.t, os.WriteFile(filepath.Join(src, "busybox"), busybox, 0o755))
	require.NoError(n.t, os.WriteFile(filepath.Join(src, "Dockerfile"), fmt.Appendf(nil, dockerfile, base), 0o644))
	require.NoError(n.t, kit.Build(n.t.Context(), src, ref))
}

// convert lets the command convert an image, and returns the layers that it says came
// out.
func (n *node) convert(from, to string) []ocispec.Descriptor {
	n.t.Helper()
	command, err := testenv.Tool("lazyerofs")
	require.NoError(n.t, err)
	cmd := exec.CommandContext(n.t.Context(), command, "convert", "--json", from, to)
	out, err := cmd.Output()
	require.NoError(n.t, err)
	var res converter.Result
	require.NoError(n.t, json.Unmarshal(out, &res))
	require.Len(n.t, res.Images, 1)
	var layers []ocispec.Descriptor
	for _, l := range res.Images[0].Layers {
		layers = append(layers, ocispec.Descriptor{Digest: l.Digest, Size: l.Size})
	}
	return layers
}
