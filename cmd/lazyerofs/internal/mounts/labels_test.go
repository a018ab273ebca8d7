package mounts

import (
	"testing"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/cmd/lazyerofs/internal/image"
)

func TestLabelsOfAllLayers(t *testing.T) {
	img := &image.Image{Ref: "example.com/app:lazy", Desc: ocispec.Descriptor{Digest: digest.FromString("manifest")}}
	for _, l := range []string{"a", "b"} {
		img.Manifest.Layers = append(img.Manifest.Layers, ocispec.Descriptor{
			Digest: digest.FromString(l), Annotations: map[string]string{"containerd.io/snapshot/erofs.x": l, "other": l},
		})
		img.Config.RootFS.DiffIDs = append(img.Config.RootFS.DiffIDs, digest.FromString("diff "+l))
	}
	got := Labels(img)
	chains := img.ChainIDs()
	require.Len(t, got, 2)
	for n, l := range got {
		require.Equal(t, layerLabels(img, n, chains[n], l[labelParentChain]), l)
		require.Equal(t, img.Ref, l["containerd.io/snapshot/cri.image-ref"])
		require.NotContains(t, l, "other")
	}
	require.Equal(t, chains[0], got[1][labelParentChain])
	require.NotContains(t, got[0], labelParentChain)
}
