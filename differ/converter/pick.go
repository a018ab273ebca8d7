package converter

import (
	"context"
	"fmt"
	"slices"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Picked is one image of a source, its documents checked against their digests.
type Picked struct {
	// Desc is the descriptor of Manifest.
	Desc     ocispec.Descriptor
	Manifest ocispec.Manifest
	// Config has as many diff ids as Manifest has layers.
	Config ocispec.Image
}

// Pick finds the image for a platform, or, when that is nil, the one that suits this
// machine best. An index may have a tar and an EROFS image of it; the EROFS image is
// preferred.
func Pick(ctx context.Context, src Source, p *ocispec.Platform) (*Picked, error) {
	root, err := src.Root(ctx)
	if err != nil {
		return nil, fmt.Errorf("finding %s: %w", src, err)
	}
	c := &conversion{src: src}
	all := &found{}
	if err := c.candidates(ctx, root, 0, all); err != nil {
		return nil, err
	}
	native := slices.Clone(all.images)
	native = slices.DeleteFunc(native, func(cand candidate) bool {
		return cand.platform == nil || !slices.Contains(cand.platform.OSFeatures, osFeature)
	})
	img, err := c.best(ctx, native, p)
	if err != nil {
		img, err = c.best(ctx, all.images, p)
	}
	if err != nil {
		return nil, err
	}
	return &Picked{Desc: img.desc, Manifest: img.manifest, Config: img.config}, nil
}
