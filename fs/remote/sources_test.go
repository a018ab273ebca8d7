package remote_test

import (
	"context"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/stargz-snapshotter/fs/source"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/remote"
	"github.com/lazyerofs/lazyerofs/fs/remote/remotetest"
)

// layers are two descriptors as our converter writes them.
func layers(g *rig) []ocispec.Descriptor {
	other := g.registry.AddBlob([]byte("other"))
	return []ocispec.Descriptor{
		{MediaType: chunk.MediaTypeLayerZstd, Digest: other, Size: 5},
		{
			MediaType: chunk.MediaTypeLayerZstd, Digest: g.digest, Size: int64(len(g.content)),
			URLs: []string{"http://evil.example/blob"},
			Annotations: map[string]string{
				chunk.AnnotationIndexRange: "10:20", chunk.AnnotationIndexDigest: digest.FromString("i").String(),
				chunk.LabelIndexRange: "10:20", chunk.LabelIndexDigest: digest.FromString("i").String(),
				chunk.LabelBlobSize: "1048576", chunk.LabelMediaType: chunk.MediaTypeLayerZstd,
			},
		},
	}
}

// labelled runs a handler wrapper over a manifest as an unpacker does and
// returns what would reach the snapshotter for the second layer.
func labelled(t *testing.T, g *rig, ls []ocispec.Descriptor, wrap func(images.Handler) images.Handler) (map[string]string, digest.Digest) {
	t.Helper()
	m := g.registry.AddManifest(ls...)
	h := wrap(images.HandlerFunc(func(context.Context, ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		return append([]ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageConfig}}, ls...), nil
	}))
	children, err := h.Handle(t.Context(), ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: m})
	require.NoError(t, err)
	out := map[string]string{}
	for k, v := range children[2].Annotations {
		if len(k) > 23 && k[:23] == "containerd.io/snapshot/" {
			out[k] = v
		}
	}
	return out, m
}

func TestLabelsOfContainerdAndStargz(t *testing.T) {
	for name, wrap := range map[string]func(ref string) func(images.Handler) images.Handler{
		"containerd": snapshotters.AppendInfoHandlerWrapper,
		"stargz": func(ref string) func(images.Handler) images.Handler {
			return source.AppendDefaultLabelsHandlerWrapper(ref, 1<<20)
		},
		"both": func(ref string) func(images.Handler) images.Handler {
			return source.AppendExtraLabelsHandler(1<<20, snapshotters.AppendInfoHandlerWrapper(ref))
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := newRig(t, nil)
			labels, m := labelled(t, g, layers(g), wrap(g.host()+"/team/app:1"))
			srcs, err := remote.Sources(g.hosts.RegistryHosts)(labels)
			require.NoError(t, err)
			require.Len(t, srcs, 1)
			require.Equal(t, g.digest, srcs[0].Target.Digest)
			require.Equal(t, int64(len(g.content)), srcs[0].Target.Size)
			require.Equal(t, chunk.MediaTypeLayerZstd, srcs[0].Target.MediaType)
			require.Equal(t, "10:20", srcs[0].Target.Annotations[chunk.AnnotationIndexRange])
			require.Empty(t, srcs[0].Target.URLs, "URLs in an image are never followed")
			if name != "stargz" {
				require.Equal(t, m, remote.ManifestDigest(srcs[0]))
			}
			desc, err := g.resolver.Describe(t.Context(), srcs[0])
			require.NoError(t, err)
			require.Equal(t, srcs[0].Target, desc)
			b, err := g.resolver.Resolve(t.Context(), srcs, desc)
			require.NoError(t, err)
			require.Empty(t, g.log.Requests(), "the labels say all")
			require.NoError(t, g.read(t, b, 0, 100))
		})
	}
}

func TestManifestGivesWhatLabelsDoNot(t *testing.T) {
	g := newRig(t, nil)
	ls := layers(g)
	labels, m := labelled(t, g, ls, snapshotters.AppendInfoHandlerWrapper(g.host()+"/team/app:1"))
	for k := range labels {
		if len(k) > len(chunk.SnapshotPrefix) && k[:len(chunk.SnapshotPrefix)] == chunk.SnapshotPrefix {
			delete(labels, k)
		}
	}
	srcs, err := remote.Sources(g.hosts.RegistryHosts)(labels)
	require.NoError(t, err)
	require.Zero(t, srcs[0].Target.Size)
	for range 3 {
		desc, err := g.resolver.Describe(t.Context(), srcs[0])
		require.NoError(t, err)
		require.Equal(t, int64(len(g.content)), desc.Size)
		require.Equal(t, "10:20", desc.Annotations[chunk.AnnotationIndexRange])
		require.Empty(t, desc.URLs)
	}
	require.Len(t, g.log.Requests(), 1, "manifests are remembered")

	_, err = g.resolver.FetchManifest(t.Context(), srcs[0], digest.FromString("no such"))
	require.ErrorIs(t, err, remote.ErrGone)
	_, err = g.resolver.FetchManifest(t.Context(), srcs[0], "sha256:short")
	require.Error(t, err)

	// A manifest whose bytes are not those of the digest is no manifest.
	fresh := newResolver(t, remote.Timeouts{})
	g.faults.Add("GET", "/manifests/", remotetest.Always, remotetest.Flip(40))
	_, err = fresh.FetchManifest(t.Context(), srcs[0], m)
	require.ErrorContains(t, err, "does not match its digest")
}

func TestManifestOfOtherThings(t *testing.T) {
	g := newRig(t, nil)
	src := g.source(t)
	index := g.registry.AddBlob([]byte(`{"schemaVersion":2,"manifests":[]}`))
	_, err := g.resolver.FetchManifest(t.Context(), src, index)
	require.ErrorContains(t, err, "is not an image manifest")
	big := g.registry.AddBlob(noise(5 << 20))
	_, err = g.resolver.FetchManifest(t.Context(), src, big)
	require.ErrorContains(t, err, "larger than")

	src.Target.Annotations = map[string]string{remote.LabelManifestDigest: g.registry.AddManifest(ocispec.DescriptorEmptyJSON).String()}
	_, err = g.resolver.Describe(t.Context(), src)
	require.ErrorContains(t, err, "does not list layer")
}

func TestLabelsThatNameNothing(t *testing.T) {
	g := newRig(t, nil)
	get := remote.Sources(g.hosts.RegistryHosts)
	d := g.digest.String()
	for name, labels := range map[string]map[string]string{
		"none":        {},
		"no digest":   {snapshotters.TargetRefLabel: "h.example/a:1"},
		"bad digest":  {snapshotters.TargetRefLabel: "h.example/a:1", snapshotters.TargetLayerDigestLabel: "sha256:../../etc"},
		"weak digest": {snapshotters.TargetRefLabel: "h.example/a:1", snapshotters.TargetLayerDigestLabel: "md5:d41d8cd98f00b204e9800998ecf8427e"},
		"url as name": {snapshotters.TargetRefLabel: "http://h.example/a:1", snapshotters.TargetLayerDigestLabel: d},
		"path":        {snapshotters.TargetRefLabel: "/etc/passwd", snapshotters.TargetLayerDigestLabel: d},
		"bad size":    {snapshotters.TargetRefLabel: "h.example/a:1", snapshotters.TargetLayerDigestLabel: d, chunk.LabelBlobSize: "-5"},
	} {
		_, err := get(labels)
		require.ErrorIs(t, err, remote.ErrNoSource, name)
	}
	srcs, err := get(map[string]string{remote.LabelImageRef: "h.example/a:1", remote.LabelLayerDigest: d})
	require.NoError(t, err)
	require.Equal(t, "h.example/a", srcs[0].Name.Locator)
}

// A manifest may carry labels of the kinds that the client does not write. They
// lead nowhere else: where kinds disagree, or one is wrong, none is believed.
func TestLabelsThatDisagree(t *testing.T) {
	const stargzRef, stargzDigest = "containerd.io/snapshot/remote/stargz.reference", "containerd.io/snapshot/remote/stargz.digest"
	get := remote.Sources(newRig(t, nil).hosts.RegistryHosts)
	d, other := digest.FromString("x").String(), digest.FromString("y").String()
	kinds := [][2]string{
		{snapshotters.TargetRefLabel, snapshotters.TargetLayerDigestLabel}, {stargzRef, stargzDigest}, {remote.LabelImageRef, remote.LabelLayerDigest},
	}
	for _, mine := range kinds {
		for _, theirs := range kinds {
			if mine == theirs {
				continue
			}
			for name, forged := range map[string][2]string{
				"another host":       {"evil.example/a:1", d},
				"another repository": {"h.example/b:1", d},
				"another blob":       {"h.example/a:1", other},
				"not a name":         {"http://evil.example/a:1", d},
				"not a digest":       {"h.example/a:1", "sha256:../../x"},
			} {
				_, err := get(map[string]string{mine[0]: "h.example/a:1", mine[1]: d, theirs[0]: forged[0], theirs[1]: forged[1]})
				require.ErrorIs(t, err, remote.ErrNoSource, "%s: %s", theirs[0], name)
				require.NotContains(t, err.Error(), "enable_remote_snapshot_annotations")
			}
			srcs, err := get(map[string]string{mine[0]: "h.example/a:1", mine[1]: d, theirs[0]: "h.example/a:2", theirs[1]: d})
			require.NoError(t, err, "a tag does not matter where the blob is known")
			require.Len(t, srcs, 1)
		}
	}
}
