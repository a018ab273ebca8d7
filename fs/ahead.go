package fs

import (
	"context"
	"time"

	"github.com/containerd/log"
	"github.com/containerd/stargz-snapshotter/fs/source"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/remote"
)

const (
	// aheadTimeout bounds the opening of an image's other layers.
	aheadTimeout = 20 * time.Second
	// aheadHold is how long a layer that was opened ahead waits for its Mount.
	aheadHold = 30 * time.Second
	// aheadParallel bounds how many are opened at once.
	aheadParallel = 8
)

// ahead begins to open the layers of the image that src and its labels describe,
// above the one that is being opened: containerd asks for one after the other and
// each would cost its round trips. What fails here fails again, and is reported,
// in the layer's own Mount.
func (f *FS) ahead(src source.Source) {
	manifest := remote.ManifestDigest(src)
	if manifest == "" || len(src.Manifest.Layers) < 2 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, going := f.images[manifest]; going || f.closed {
		return
	}
	f.images[manifest] = struct{}{}
	f.tasks.Go(func() { // ends with Close
		opened := f.openAhead(src)
		hold := time.NewTimer(aheadHold)
		defer hold.Stop()
		select {
		case <-hold.C:
		case <-f.ctx.Done():
		}
		for _, s := range opened {
			f.release(s)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.images, manifest)
	})
}

// openAhead opens and prepares what it can and returns it, one reference each.
func (f *FS) openAhead(src source.Source) []*shared {
	ctx, cancel := context.WithTimeout(f.ctx, aheadTimeout)
	defer cancel()
	opened := make([]*shared, len(src.Manifest.Layers))
	var g errgroup.Group
	g.SetLimit(aheadParallel)
	seen := map[digest.Digest]bool{src.Target.Digest: true}
	for i, l := range src.Manifest.Layers {
		if seen[l.Digest] {
			continue
		}
		seen[l.Digest] = true
		g.Go(func() error {
			var err error
			if opened[i], err = f.openNeighbour(ctx, src, l.Digest); err != nil {
				log.G(ctx).WithError(err).WithField("layer", l.Digest).Debug("layer is not opened ahead")
			}
			return nil
		})
	}
	_ = g.Wait() // nobody returns an error
	out := opened[:0]
	for _, s := range opened {
		if s != nil {
			out = append(out, s)
		}
	}
	return out
}

// openNeighbour opens and prepares another layer of src's image. Only a layer
// whose descriptor alone says what its diff id must be is opened: the claim of the
// image is not known here, and Mount refuses a layer opened under another one.
func (f *FS) openNeighbour(ctx context.Context, src source.Source, id digest.Digest) (*shared, error) {
	src.Target = ocispec.Descriptor{Digest: id, Annotations: map[string]string{
		remote.LabelManifestDigest: remote.ManifestDigest(src).String(),
	}}
	desc, err := f.c.Resolver.Describe(ctx, src)
	if err != nil {
		return nil, err
	}
	switch desc.MediaType {
	case chunk.MediaTypeLayer, chunk.MediaTypeDraftLayer:
	case chunk.MediaTypeLayerZstd, chunk.MediaTypeDraftLayerZstd:
		if desc.Annotations[chunk.AnnotationUncompressedDigest] == "" {
			return nil, fail(ReasonIdentity, "layer %s does not give the digest of its image", id)
		}
	default:
		return nil, fail(ReasonFormat, "layer %s of type %q is not native", id, desc.MediaType)
	}
	s, err := f.acquire(ctx, []source.Source{src}, nil)
	if err != nil {
		return nil, err
	}
	if err := s.prepare(ctx); err != nil {
		f.release(s)
		return nil, err
	}
	return s, nil
}
