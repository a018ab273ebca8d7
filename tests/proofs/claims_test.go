package proofs

import (
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// impostor is like layered, with other content in the highest layer.
func (s *shop) impostor() *testenv.Image {
	s.t.Helper()
	recipe, err := testenv.Tiny()
	require.NoError(s.t, err)
	recipe.Name = "impostor"
	recipe.Steps = append(recipe.Steps, testenv.Step{Name: "impostor", Script: `seq 900000 -1 1 >"$ROOT/lines"` + "\n"})
	return s.build(recipe)
}

// rivals returns an honest image, and one that claims the diff id of the honest
// one's highest layer for a layer of its own, whatever else claim makes it say.
func (s *shop) rivals(form form, claim func(layer *ocispec.Descriptor, diffID string)) (honest, evil *image) {
	s.t.Helper()
	honest = s.convert(s.layered(), "honest", form)
	var diffID digest.Digest
	s.alter(honest, "same", func(_ *ocispec.Manifest, c *ocispec.Image) {
		diffID = c.RootFS.DiffIDs[len(c.RootFS.DiffIDs)-1]
	})
	evil = s.alter(s.convert(s.impostor(), "impostor", form), "evil", func(m *ocispec.Manifest, c *ocispec.Image) {
		last := len(m.Layers) - 1
		c.RootFS.DiffIDs[last] = diffID
		claim(&m.Layers[last], diffID.String())
	})
	return honest, evil
}

// A claim that the manifest itself contradicts is refused before anything is
// mounted: containerd downloads the layer, unpacks it and finds the same.
func TestClaimOfAnotherLayersDiffID(t *testing.T) {
	for name, form := range forms {
		t.Run(name, func(t *testing.T) {
			s := openShop(t, scratch(t))
			honest, evil := s.rivals(form, func(*ocispec.Descriptor, string) {})
			n := startNode(t, nil)
			require.ErrorContains(t, n.tryPull(evil.ref), "wrong diff id")
			require.Len(t, n.mounts(), len(evil.manifest.Layers)-1)
			require.Equal(t, `lazyerofs_snapshot_misses_total{reason="identity"} 1`, n.metric("lazyerofs_snapshot_misses_total{"))

			s.Reset()
			n.pull(honest.ref)
			requireLazy(t, s, honest)
			require.Equal(t, "/lines: "+lines(), n.run(honest.ref, "one", "/hello", "/lines"))
		})
	}
}

// A compressed layer's claim can be checked only when the layer is complete. Then
// it is quarantined: no new container gets it, whichever image it stands for, and
// what the log tells people to do helps.
func TestFalseClaimIsFoundWhenComplete(t *testing.T) {
	s := openShop(t, scratch(t))
	honest, evil := s.rivals(zstdForm, func(layer *ocispec.Descriptor, diffID string) {
		layer.Annotations[chunk.AnnotationUncompressedDigest] = diffID
		layer.Annotations[chunk.LabelUncompressedDigest] = diffID
	})
	n := startNode(t, nil)
	n.pull(evil.ref)
	n.run(evil.ref, "one", "/hello", "/lines")
	require.Eventually(t, func() bool { return strings.Contains(n.daemonLog(), "layer is quarantined") }, time.Minute, 20*time.Millisecond)
	mounts := n.mounts()

	for _, ref := range []string{evil.ref, honest.ref} {
		require.NoError(t, n.tryPull(ref)) // containerd has the chain id already
		_, err := n.tryRun(ref, "two", "/hello", "/lines")
		require.ErrorContains(t, err, "quarantined")
	}
	require.Equal(t, mounts, n.mounts())

	// The verdict outlives the daemon that found it.
	require.NoError(t, n.daemon.Replace(t.Context()))
	_, err := n.tryRun(honest.ref, "two", "/hello", "/lines")
	require.ErrorContains(t, err, "quarantined")
	require.Equal(t, mounts, n.mounts())

	_, err = n.Ctr(t.Context(), "images", "remove", "--sync", evil.ref, honest.ref)
	require.NoError(t, err)
	require.Empty(t, n.mounts())
	n.pull(honest.ref)
	require.Equal(t, "/lines: "+lines(), n.run(honest.ref, "three", "/hello", "/lines"))
}

// A false claim about a layer does not outlive the image that makes it: another
// image that says the truth about the same blob gets it lazily.
func TestFalseClaimDoesNotStick(t *testing.T) {
	s := openShop(t, scratch(t))
	_, evil := s.rivals(zstdForm, func(layer *ocispec.Descriptor, diffID string) {
		layer.Annotations[chunk.AnnotationUncompressedDigest] = diffID
		layer.Annotations[chunk.LabelUncompressedDigest] = diffID
	})
	truth := s.convert(s.impostor(), "truth", zstdForm)
	n := startNode(t, nil)
	n.pull(evil.ref)
	_, err := n.Ctr(t.Context(), "images", "remove", "--sync", evil.ref)
	require.NoError(t, err)
	require.Empty(t, n.mounts())
	require.NoError(t, n.daemon.Replace(t.Context())) // so that nothing of it is open any more
	n.pull(truth.ref)
	requireLazy(t, s, truth)
	require.Len(t, n.mounts(), len(truth.manifest.Layers))
	n.run(truth.ref, "one", "/hello", "/lines")
}

// A blob that was found good under its own diff id is not given to an image that
// claims another for it, also when only the manifest says what the layer is.
func TestFalseClaimAboutAKnownBlob(t *testing.T) {
	s := openShop(t, scratch(t))
	honest, evil := s.rivals(zstdForm, func(layer *ocispec.Descriptor, diffID string) {
		for k := range layer.Annotations {
			if strings.HasPrefix(k, chunk.SnapshotPrefix) {
				delete(layer.Annotations, k)
			}
		}
		layer.Annotations[chunk.AnnotationUncompressedDigest] = diffID
	})
	truth := s.convert(s.impostor(), "truth", zstdForm)
	n := startNode(t, nil)
	n.pull(truth.ref)
	n.run(truth.ref, "one", "/hello", "/lines")
	require.Eventually(t, func() bool {
		return strings.Contains(n.daemonLog(), `layer is complete" layer="`+truth.manifest.Layers[3].Digest.String())
	}, time.Minute, 20*time.Millisecond)
	_, err := n.Ctr(t.Context(), "images", "remove", "--sync", truth.ref)
	require.NoError(t, err)

	// Our differ finds the manifest's own annotation wrong before containerd finds
	// the diff id wrong.
	require.ErrorContains(t, n.tryPull(evil.ref), "failed to extract layer")
	require.Contains(t, n.daemonLog(), "reason=identity")
	n.pull(honest.ref)
	require.Equal(t, "/lines: "+lines(), n.run(honest.ref, "two", "/hello", "/lines"))
}
