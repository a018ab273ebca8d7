package e2e

import (
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// An image with a broken annotation is pulled all the same.
func TestBrokenIndexFallsBack(t *testing.T) {
	n := start(t, nil)
	_, plain := n.tiny()
	ref, image := n.lazy(plain, "broken", form{spoil: func(layer int, desc *ocispec.Descriptor) {
		if layer != 1 {
			return
		}
		for k, v := range desc.Annotations {
			if strings.HasSuffix(k, "chunk-index.digest") {
				desc.Annotations[k] = v[:len(v)-4] + "0000"
			}
		}
	}})
	require.NotEmpty(t, image.Layers[1].Annotations[chunk.AnnotationIndexDigest])
	n.pull(ref)
	_, whole := n.layerGets(image)
	require.Zero(t, whole[image.Layers[0].Digest.String()], "the layer below is a hit")
	require.Equal(t, 1, whole[image.Layers[1].Digest.String()])
	require.Equal(t, 1, whole[image.Layers[2].Digest.String()], "the layer above goes the way of the broken one")
	require.Equal(t, testenv.TinyOutput, n.run(ref, "one", image.Ready...))
	log, err := n.daemon.Log()
	require.NoError(t, err)
	require.Contains(t, log, "reason=corrupt")
}

// Layers of both kinds in one image: hits end at the first layer that is not lazy.
func TestMixedImage(t *testing.T) {
	n := start(t, nil)
	_, plain := n.tiny()
	ref, image := n.lazy(plain, "mixed", form{plain: 1})
	n.pull(ref)
	_, whole := n.layerGets(image)
	for _, l := range image.Layers {
		require.Equal(t, 1, whole[l.Digest.String()])
	}
	require.Equal(t, testenv.TinyOutput, n.run(ref, "one", image.Ready...))
}

// The layers of another image are here, unpacked. The ones above them in a new
// image are lazy all the same: nothing is being downloaded because of it.
func TestLazyAboveWhatIsHere(t *testing.T) {
	n := start(t, nil)
	base, plain := n.tiny()
	n.pull(base)
	ref, image := n.lazy(plain, "upper", form{plain: 2})
	n.pull(ref)
	_, whole := n.layerGets(image)
	require.Empty(t, whole, "nothing had to be downloaded")
	require.Equal(t, testenv.TinyOutput, n.run(ref, "one", image.Ready...))
}

// strict fails the pull in words instead of downloading.
func TestStrict(t *testing.T) {
	n := start(t, map[string]any{"snapshotter": map[string]any{"strict": true}})
	ref, _ := n.tiny()
	_, err := n.Ctr(t.Context(), "images", "pull", "--plain-http", "--snapshotter", "lazyerofs", ref)
	require.ErrorContains(t, err, "strict is set")
}
