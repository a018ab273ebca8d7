package image

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/differ/converter"
)

// maxDocument bounds a manifest, index or config: registries accept 4 MiB
// manifests at most, and nothing larger is worth holding in memory.
const maxDocument = 4 << 20

// Image is one platform's image as the registry describes it. Manifest and
// Config were checked against their digests.
type Image struct {
	// Ref is the full reference, for example "docker.io/library/python:3.13".
	Ref string
	// Desc is the descriptor of Manifest.
	Desc     ocispec.Descriptor
	Manifest ocispec.Manifest
	Config   ocispec.Image
}

// ChainIDs returns the chain id of each layer, bottom first.
func (i *Image) ChainIDs() []string {
	ids := make([]string, len(i.Config.RootFS.DiffIDs))
	for n := range ids {
		ids[n] = identity.ChainID(i.Config.RootFS.DiffIDs[:n+1]).String()
	}
	return ids
}

// match returns what chooses among platforms for p, or, when that is nil, for this
// machine, which runs images of older ones, too.
func match(p *ocispec.Platform) platforms.MatchComparer {
	want, compare := platforms.DefaultSpec(), platforms.Only
	if p != nil {
		want, compare = *p, platforms.OnlyStrict
	}
	want.OSFeatures = append(slices.Clone(want.OSFeatures), "erofs")
	return compare(want)
}

// Resolve finds ref, a familiar reference such as "python:3.13", and fetches
// its manifest and config. Of an index it takes the entry for platform, or, when
// that is nil, the one that suits this machine best; an entry with the os.feature
// "erofs" goes before one without. If there is none the error wraps
// converter.ErrPlatform.
func Resolve(ctx context.Context, ref string, hosts docker.RegistryHosts, platform *ocispec.Platform) (*Image, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return nil, fmt.Errorf("%w: %q: %w; write HOST/NAME:TAG, an image can be mounted from a registry only", converter.ErrLocation, ref, err)
	}
	img := &Image{Ref: named.String()}
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: hosts})
	_, desc, err := resolver.Resolve(ctx, img.Ref)
	if err != nil {
		return nil, fmt.Errorf("finding image %s: %w", img.Ref, err)
	}
	fetcher, err := resolver.Fetcher(ctx, img.Ref)
	if err != nil {
		return nil, fmt.Errorf("opening image %s: %w", img.Ref, err)
	}
	if images.IsIndexType(desc.MediaType) {
		if desc, err = choose(ctx, fetcher, desc, platform); err != nil {
			return nil, fmt.Errorf("choosing a manifest of %s: %w", img.Ref, err)
		}
	}
	if !images.IsManifestType(desc.MediaType) {
		return nil, fmt.Errorf("%s is a %s, not an image", img.Ref, desc.MediaType)
	}
	img.Desc = desc
	if err := document(ctx, fetcher, desc, &img.Manifest); err != nil {
		return nil, fmt.Errorf("reading manifest of %s: %w", img.Ref, err)
	}
	if err := document(ctx, fetcher, img.Manifest.Config, &img.Config); err != nil {
		return nil, fmt.Errorf("reading config of %s: %w", img.Ref, err)
	}
	if l, d := len(img.Manifest.Layers), len(img.Config.RootFS.DiffIDs); l != d || l == 0 {
		return nil, fmt.Errorf("image %s has %d layers but %d diff ids", img.Ref, l, d)
	}
	return img, nil
}

// choose picks the entry of an index for a platform.
func choose(ctx context.Context, f remotes.Fetcher, desc ocispec.Descriptor, p *ocispec.Platform) (ocispec.Descriptor, error) {
	var idx ocispec.Index
	if err := document(ctx, f, desc, &idx); err != nil {
		return desc, err
	}
	match := match(p)
	var found []ocispec.Descriptor
	for _, m := range idx.Manifests {
		if images.IsManifestType(m.MediaType) && m.Platform != nil && match.Match(*m.Platform) {
			found = append(found, m)
		}
	}
	if len(found) == 0 {
		want := platforms.DefaultSpec()
		if p != nil {
			want = *p
		}
		return desc, fmt.Errorf("%w %s", converter.ErrPlatform, platforms.Format(want))
	}
	slices.SortStableFunc(found, func(a, b ocispec.Descriptor) int {
		ea, eb := hasEROFS(a), hasEROFS(b)
		switch {
		case ea != eb && ea:
			return -1
		case ea != eb:
			return 1
		case match.Less(*a.Platform, *b.Platform):
			return -1
		case match.Less(*b.Platform, *a.Platform):
			return 1
		}
		return 0
	})
	return found[0], nil
}

func hasEROFS(d ocispec.Descriptor) bool {
	return slices.Contains(d.Platform.OSFeatures, "erofs")
}

// document fetches a JSON document, checks it against its digest and only then
// decodes it.
func document(ctx context.Context, f remotes.Fetcher, desc ocispec.Descriptor, to any) error {
	if desc.Size > maxDocument {
		return fmt.Errorf("%s is %d bytes long; at most %d are read", desc.Digest, desc.Size, maxDocument)
	}
	rc, err := f.Fetch(ctx, desc)
	if err != nil {
		return fmt.Errorf("fetching %s: %w", desc.Digest, err)
	}
	defer rc.Close()
	var b bytes.Buffer
	if _, err := io.Copy(&b, io.LimitReader(rc, maxDocument+1)); err != nil {
		return fmt.Errorf("fetching %s: %w", desc.Digest, err)
	}
	if err := desc.Digest.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", desc.Digest, err)
	}
	if got := desc.Digest.Algorithm().FromBytes(b.Bytes()); got != desc.Digest {
		return fmt.Errorf("registry sent bytes with digest %s for %s", got, desc.Digest)
	}
	if err := json.Unmarshal(b.Bytes(), to); err != nil {
		return fmt.Errorf("decoding %s: %w", desc.Digest, err)
	}
	return nil
}
