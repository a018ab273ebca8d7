package fs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"

	"github.com/containerd/stargz-snapshotter/fs/source"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/format"
)

// labelDiffID is containerd's label for the diff id that the image claims.
const labelDiffID = "containerd.io/snapshot/diff-id"

// same checks that a claim about an open layer is the claim it was opened with.
func (f *FS) same(ctx context.Context, s *shared, srcs []source.Source, labels map[string]string) error {
	desc, err := f.describe(ctx, srcs, labels)
	if err != nil {
		return err
	}
	return sameContent(s.desc, desc)
}

// sameContent says why two descriptors of one blob do not name the same content.
// What is local belongs to have, which was checked against its own image only.
func sameContent(have, want ocispec.Descriptor) error {
	if have.Size != want.Size && want.Size > 0 {
		return fail(ReasonIdentity, "layer %s has %d bytes here and %d in the image", have.Digest, have.Size, want.Size)
	}
	if have.MediaType != want.MediaType && want.MediaType != "" {
		return fail(ReasonIdentity, "layer %s is %q here and %q in the image", have.Digest, have.MediaType, want.MediaType)
	}
	for _, key := range []string{chunk.AnnotationIndexDigest, chunk.AnnotationUncompressedDigest} {
		if have.Annotations[key] != want.Annotations[key] {
			return fail(ReasonIdentity, "layer %s is here with another %s than the image gives", have.Digest, key)
		}
	}
	return nil
}

// describe returns the layer's descriptor, with the claim that is checked once
// the layer is complete filled in from what containerd files it under.
func (f *FS) describe(ctx context.Context, srcs []source.Source, labels map[string]string) (ocispec.Descriptor, error) {
	desc, err := f.c.Resolver.Describe(ctx, srcs[0])
	if err != nil {
		return desc, fmt.Errorf("describing layer %s: %w", srcs[0].Target.Digest, err)
	}
	return claim(desc, labels[labelDiffID])
}

// claim ties desc to the diff id that the image gives, when it gives one.
func claim(desc ocispec.Descriptor, diffID string) (ocispec.Descriptor, error) {
	if diffID == "" {
		return desc, nil
	}
	claimed, err := digest.Parse(diffID)
	if err != nil {
		return desc, fail(ReasonIdentity, "layer %s: the image's diff id %q is malformed", desc.Digest, diffID)
	}
	switch desc.MediaType {
	case chunk.MediaTypeLayer, chunk.MediaTypeDraftLayer:
		if claimed != desc.Digest {
			return desc, fail(ReasonIdentity, "layer %s is stored as it is, but the image calls it %s", desc.Digest, claimed)
		}
	case chunk.MediaTypeLayerZstd, chunk.MediaTypeDraftLayerZstd:
		have := desc.Annotations[chunk.AnnotationUncompressedDigest]
		if have != "" && have != claimed.String() {
			return desc, fail(ReasonIdentity, "layer %s decompresses to %s by its annotation, but the image calls it %s", desc.Digest, have, claimed)
		}
		a := make(map[string]string, len(desc.Annotations)+1) // the caller's map stays as it is
		maps.Copy(a, desc.Annotations)
		delete(a, chunk.LabelUncompressedDigest) // the draft's key is the one that counts
		a[chunk.AnnotationUncompressedDigest] = claimed.String()
		desc.Annotations = a
	}
	return desc, nil
}

// damaged reports whether err means that what was recorded of a layer cannot be
// used, so that it is to be fetched anew.
func damaged(err error) bool {
	var corrupt *chunk.CorruptError
	return errors.As(err, &corrupt) || errors.Is(err, os.ErrNotExist) || errors.Is(err, format.ErrNotRecorded)
}

// described reports whether labels alone say which content is meant.
func described(desc ocispec.Descriptor) bool {
	return desc.Annotations[chunk.AnnotationIndexDigest] != ""
}
