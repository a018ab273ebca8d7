package converter

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// referrerLister is implemented by sources that can tell what refers to a
// manifest of theirs.
type referrerLister interface {
	// referrers lists what refers to subject, through the referrers API, its
	// fallback tag and the tags that cosign gives.
	referrers(ctx context.Context, subject digest.Digest) ([]Referrer, error)
}

// cosignSuffixes end the tags that cosign makes of a digest
// (sigstore/cosign, specs/SIGNATURE_SPEC.md and the like).
var cosignSuffixes = []string{".sig", ".att", ".sbom"}

// tagOf is how both the distribution spec's fallback and cosign write a digest
// as a tag.
func tagOf(d digest.Digest) string { return strings.Replace(d.String(), ":", "-", 1) }

const (
	maxReferrers    = 1000 // of one subject
	maxAskedAtOnce  = 4
	maxArtifactType = 255 // RFC 6838
)

// findReferrers lists what speaks of the source. A registry that does not answer
// is no reason not to convert.
func (c *conversion) findReferrers(ctx context.Context, subjects []digest.Digest) []Referrer {
	lister, ok := c.src.(referrerLister)
	if !ok {
		return nil
	}
	found := make([][]Referrer, len(subjects))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(maxAskedAtOnce)
	for i, s := range subjects {
		g.Go(func() error {
			rs, err := lister.referrers(ctx, s)
			if err != nil && ctx.Err() == nil {
				c.warn("whether signatures or SBOMs of %s are lost is not known: %v", s, err)
			}
			found[i] = rs
			return nil
		})
	}
	_ = g.Wait() // none returns an error
	return slices.Concat(found...)
}

// referrers implements referrerLister.
func (s *registrySource) referrers(ctx context.Context, subject digest.Digest) ([]Referrer, error) {
	f, err := s.resolver.Fetcher(ctx, s.ref)
	if err != nil {
		return nil, s.sentence(err)
	}
	var out []Referrer
	if rf, ok := f.(remotes.ReferrersFetcher); ok {
		descs, err := rf.FetchReferrers(ctx, subject)
		if err != nil {
			return nil, fmt.Errorf("asking %s for referrers of %s: %w", s.host, subject, s.sentence(err))
		}
		for _, d := range descs[:min(len(descs), maxReferrers)] {
			out = append(out, referrerOf(subject, d, ""))
		}
	}
	for _, suffix := range cosignSuffixes {
		tag := tagOf(subject) + suffix
		_, d, err := s.resolver.Resolve(ctx, s.host+"/"+s.repo+":"+tag)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return out, fmt.Errorf("asking %s for %s: %w", s.host, tag, s.sentence(err))
		}
		out = append(out, referrerOf(subject, d, tag))
	}
	return out, nil
}

func referrerOf(subject digest.Digest, d ocispec.Descriptor, tag string) Referrer {
	r := Referrer{Subject: subject, Digest: d.Digest, Tag: tag, MediaType: d.MediaType, ArtifactType: d.ArtifactType}
	if len(r.ArtifactType) > maxArtifactType {
		r.ArtifactType = r.ArtifactType[:maxArtifactType]
	}
	return r
}

// referrersIn finds in the entries of an OCI layout what refers to subject: by
// the tags of both schemes, or by its own subject, which read gives.
func referrersIn(entries []ocispec.Descriptor, subject digest.Digest, read func(ocispec.Descriptor) (digest.Digest, error)) ([]Referrer, error) {
	tag := tagOf(subject)
	var out []Referrer
	for _, e := range entries[:min(len(entries), maxReferrers)] {
		name := e.Annotations[ocispec.AnnotationRefName]
		if name == tag || slices.ContainsFunc(cosignSuffixes, func(s string) bool { return name == tag+s }) {
			out = append(out, referrerOf(subject, e, name))
			continue
		}
		of, err := read(e)
		if err != nil {
			return out, err
		}
		if of == subject {
			out = append(out, referrerOf(subject, e, name))
		}
	}
	return out, nil
}

// What says what a referrer is, for people.
func (r Referrer) What() string {
	kind := strings.ToLower(r.ArtifactType)
	switch {
	case strings.HasSuffix(r.Tag, ".sig"), strings.Contains(kind, "sig"), strings.Contains(kind, "notary"):
		return "signature"
	case strings.HasSuffix(r.Tag, ".sbom"), strings.Contains(kind, "spdx"), strings.Contains(kind, "cyclonedx"), strings.Contains(kind, "sbom"):
		return "SBOM"
	case strings.HasSuffix(r.Tag, ".att"), strings.Contains(kind, "in-toto"):
		return "attestation"
	}
	return "referrer"
}
