package converter

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// BuildKit puts attestations into the index of an image, one manifest for each
// platform, bound to its image by annotations of the index entry
// (moby/buildkit, docs/attestations/attestation-storage.md).
const (
	annotationRefType   = "vnd.docker.reference.type"
	annotationRefDigest = "vnd.docker.reference.digest"
	refTypeAttestation  = "attestation-manifest"
	annotationPredicate = "in-toto.io/predicate-type"
)

// attestation is an entry of an index that speaks of another one.
type attestation struct {
	desc ocispec.Descriptor
	of   digest.Digest // the manifest of the image
}

// attestationOf tells attestations from other entries of an index.
func attestationOf(d ocispec.Descriptor) (attestation, bool) {
	of, err := digest.Parse(d.Annotations[annotationRefDigest])
	ok := err == nil && d.Annotations[annotationRefType] == refTypeAttestation && images.IsManifestType(d.MediaType)
	return attestation{desc: d, of: of}, ok
}

// predicates lists the kinds of statements in a manifest.
func predicates(m ocispec.Manifest) []string {
	var out []string
	for _, l := range m.Layers {
		if p := l.Annotations[annotationPredicate]; p != "" && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

// attest carries the attestations of the converted images over. It returns the
// entries of the index, first those of the tar images if they are kept, then
// those of the new ones.
func (c *conversion) attest(ctx context.Context, imgs []*image, entries []ocispec.Descriptor, res *Result) ([]ocispec.Descriptor, error) {
	var old, renamed []ocispec.Descriptor
	for i, img := range imgs {
		for _, a := range img.attestations {
			raw, err := c.readJSON(ctx, a.desc)
			if err != nil {
				return nil, err
			}
			var m ocispec.Manifest
			if err := json.Unmarshal(raw, &m); err != nil {
				return nil, fmt.Errorf("attestation %s is not JSON: %w", a.desc.Digest, err)
			}
			ar := Attestation{Source: a.desc.Digest, SourceImage: a.of, Predicates: predicates(m)}
			if !c.hasIndex(imgs) {
				hint := "--output index keeps it"
				if c.export != nil {
					hint = "--all-platforms, or several, give an index that keeps it"
				}
				c.warn("attestation %s of %s is left out, because a single manifest has no place for it; %s",
					a.desc.Digest, platforms.Format(img.platform), hint)
				res.Attestations = append(res.Attestations, ar)
				continue
			}
			for _, d := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
				if _, err := c.copyBlob(ctx, d, func(int64) {}); err != nil {
					return nil, fmt.Errorf("attestation %s: %w", a.desc.Digest, err)
				}
			}
			if img.tar {
				if err := c.put(ctx, a.desc, raw); err != nil {
					return nil, err
				}
				old = append(old, a.desc)
			}
			d, err := c.rename(ctx, a, raw, m.Subject != nil, entries[i])
			if err != nil {
				return nil, err
			}
			renamed = append(renamed, d)
			ar.Digest, ar.Image = d.Digest, entries[i].Digest
			res.Attestations = append(res.Attestations, ar)
		}
	}
	return append(old, renamed...), nil
}

// rename binds an attestation to the new image: in the entry of the index and,
// in those that are OCI artifacts, in their subject. The statements are left as
// they are, since who made them did not see the new image.
func (c *conversion) rename(ctx context.Context, a attestation, raw []byte, hasSubject bool, image ocispec.Descriptor) (ocispec.Descriptor, error) {
	d := a.desc
	if hasSubject {
		fields, err := parseObject(raw)
		if err != nil {
			return d, fmt.Errorf("attestation %s is %w", a.desc.Digest, err)
		}
		if err := fields.set("subject", ocispec.Descriptor{MediaType: image.MediaType, Digest: image.Digest, Size: image.Size}); err != nil {
			return d, err
		}
		if raw, err = json.Marshal(fields); err != nil {
			return d, err
		}
		d.Digest, d.Size = digest.FromBytes(raw), int64(len(raw))
	}
	d.Annotations = maps.Clone(d.Annotations)
	d.Annotations[annotationRefDigest] = image.Digest.String()
	return d, c.put(ctx, d, raw)
}
