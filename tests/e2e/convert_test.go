package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/content/oci"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// form says how an image is converted.
type form struct {
	differ.Config
	plain int                                       // this many of the lowest layers stay tar
	spoil func(layer int, desc *ocispec.Descriptor) // changes a descriptor after the conversion
}

// lazy converts image, pushes it as repo:tag and returns reference and image.
func (n *node) lazy(image *testenv.Image, tag string, f form) (string, *testenv.Image) {
	n.t.Helper()
	ctx := n.t.Context()
	src, err := oci.NewWithContext(ctx, image.Dir)
	require.NoError(n.t, err)
	ref := n.reg.Addr() + "/tiny:" + tag
	dst, err := remote.NewRepository(ref)
	require.NoError(n.t, err)
	dst.PlainHTTP = true

	var manifest ocispec.Manifest
	read(n, src, image.Manifest, &manifest)
	var config ocispec.Image
	read(n, src, manifest.Config, &config)
	for i, l := range manifest.Layers {
		blob, err := content.FetchAll(ctx, src, l)
		require.NoError(n.t, err)
		desc, diffID := l, config.RootFS.DiffIDs[i]
		if i >= f.plain {
			var out bytes.Buffer
			res, err := differ.Convert(ctx, bytes.NewReader(blob), &out, f.Config)
			require.NoError(n.t, err)
			desc, diffID, blob = res.Descriptor, res.DiffID, out.Bytes()
		}
		if f.spoil != nil {
			f.spoil(i, &desc)
		}
		n.push(dst, desc, blob)
		manifest.Layers[i], config.RootFS.DiffIDs[i] = desc, diffID
	}
	config.OSFeatures = []string{"erofs"}
	manifest.Config = n.pushJSON(dst, manifest.Config.MediaType, config)
	desc := n.pushJSON(dst, image.Manifest.MediaType, manifest)
	require.NoError(n.t, dst.Tag(ctx, desc, tag))
	n.reg.Reset()
	return ref, &testenv.Image{Name: image.Name, Manifest: desc, Layers: manifest.Layers, Ready: image.Ready}
}

func read(n *node, src content.Fetcher, desc ocispec.Descriptor, v any) {
	n.t.Helper()
	b, err := content.FetchAll(n.t.Context(), src, desc)
	require.NoError(n.t, err)
	require.NoError(n.t, json.Unmarshal(b, v))
}

func (n *node) push(dst *remote.Repository, desc ocispec.Descriptor, b []byte) {
	n.t.Helper()
	ok, err := dst.Exists(n.t.Context(), desc)
	require.NoError(n.t, err)
	if !ok {
		require.NoError(n.t, dst.Push(context.WithoutCancel(n.t.Context()), desc, io.NopCloser(bytes.NewReader(b))))
	}
}

func (n *node) pushJSON(dst *remote.Repository, mediaType string, v any) ocispec.Descriptor {
	n.t.Helper()
	b, err := json.Marshal(v)
	require.NoError(n.t, err)
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	n.push(dst, desc, b)
	return desc
}
