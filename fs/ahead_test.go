package fs

import (
	"fmt"
	"strings"
	"testing"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
)

// whole is the images as layers of one manifest, with containerd's labels.
func (r *rig) whole(layers ...image) []image {
	r.t.Helper()
	var descs []ocispec.Descriptor
	var digests []string
	for _, l := range layers {
		descs = append(descs, l.desc)
		digests = append(digests, l.desc.Digest.String())
	}
	manifest := r.reg.AddManifest(descs...).String()
	for i := range layers {
		layers[i].labels["containerd.io/snapshot/cri.manifest-digest"] = manifest
		layers[i].labels["containerd.io/snapshot/cri.image-layers"] = strings.Join(digests[i:], ",")
	}
	return layers
}

// The first layer of an image starts all others, so that their mounts find them.
func TestOtherLayersAreOpenedAhead(t *testing.T) {
	r := newRig(t)
	var layers []image
	for i := range uint64(4) {
		layers = append(layers, r.publish(drivertest.NewImage(t, 30+i, false), i%2 == 0, nil))
	}
	layers = append(layers, r.publish(drivertest.NewImage(t, 40, false), false, func(d *ocispec.Descriptor) {
		delete(d.Annotations, chunk.AnnotationUncompressedDigest) // nobody knows its diff id ahead
	}), r.publish(drivertest.NewImage(t, 41, false), false, func(d *ocispec.Descriptor) {
		d.MediaType = ocispec.MediaTypeImageLayerGzip
	}))
	layers = r.whole(layers...)
	r.mount("0", layers[0])
	prepared := func(l image) bool {
		r.FS.mu.Lock()
		s := r.FS.layers[l.desc.Digest]
		r.FS.mu.Unlock()
		if s == nil {
			return false
		}
		s.lock <- struct{}{}
		defer func() { <-s.lock }()
		return s.prepared
	}
	for _, l := range layers[1:4] {
		eventually(t, "a layer is ready before its mount", func() bool { return prepared(l) })
	}
	require.Len(t, r.log.Matching("GET", "manifests/"), 1)
	require.Zero(t, r.requests(layers[4]))
	require.Zero(t, r.requests(layers[5]))

	r.log.Reset()
	for i, l := range layers[1:4] {
		r.mount(fmt.Sprint(i+1), l)
	}
	require.Empty(t, r.log.Requests(), "what is ready was asked for again")
	require.Equal(t, ReasonIdentity, reason(t, r.Mount(t.Context(), r.newTarget("forged"),
		with(layers[1].labels, labelDiffID, digest.FromString("forged").String()))), "the claim counts for layers that are open too")
	at := r.mount("4", layers[4])
	r.requireTree(at, layers[4])
}

// What is open ahead goes with the process.
func TestAheadEndsWithTheProcess(t *testing.T) {
	r := newRig(t)
	layers := r.whole(r.publish(drivertest.NewImage(t, 50, false), false, nil), r.publish(drivertest.NewImage(t, 51, false), false, nil))
	below := r.mount("0", layers[0])
	r.stop()
	r.start()
	require.NoError(t, r.Mount(t.Context(), below, layers[0].labels))
	at := r.mount("1", layers[1])
	r.requireTree(at, layers[1])
}
