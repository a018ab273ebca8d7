package converter

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// image is one manifest that is converted.
type image struct {
	desc      ocispec.Descriptor
	manifest  ocispec.Manifest
	config    ocispec.Image
	raw       []byte // of the manifest
	rawConfig []byte
	platform  ocispec.Platform
	// entry holds what the index said of it: annotations and the artifact type.
	entry ocispec.Descriptor
	// tar: the target gets the tar image as well.
	tar          bool
	attestations []attestation
}

// maxDepth bounds indexes inside indexes, maxEntries the entries of one.
const (
	maxDepth   = 3
	maxEntries = 1000
)

// candidate is a manifest of an index, with the platform that the index says.
type candidate struct {
	desc     ocispec.Descriptor
	platform *ocispec.Platform
	inIndex  bool
}

// found is what an index leads to.
type found struct {
	images       []candidate
	attestations []attestation
	skipped      []string
}

// selectImages returns the images to convert and the names of what is none.
func (c *conversion) selectImages(ctx context.Context, root ocispec.Descriptor) ([]*image, []string, error) {
	all := &found{}
	if err := c.candidates(ctx, root, 0, all); err != nil {
		return nil, nil, err
	}
	imgs, err := c.choose(ctx, all)
	if err != nil {
		return nil, nil, err
	}
	for _, img := range imgs {
		img.tar = c.opts.Output == Index && !slices.ContainsFunc(img.manifest.Layers, func(l ocispec.Descriptor) bool { return chunk.IsNative(l.MediaType) })
		for _, a := range all.attestations {
			if a.of == img.desc.Digest {
				img.attestations = append(img.attestations, a)
			}
		}
	}
	if !c.opts.AllPlatforms {
		all.skipped = nil // nobody asked for them
	}
	return imgs, all.skipped, nil
}

// choose loads the images that the options ask for.
func (c *conversion) choose(ctx context.Context, all *found) ([]*image, error) {
	var imgs []*image
	if !c.opts.AllPlatforms {
		var wanted []*ocispec.Platform
		for i := range c.opts.Platforms {
			wanted = append(wanted, &c.opts.Platforms[i])
		}
		if wanted == nil {
			wanted = append(wanted, nil) // this machine's
		}
		for _, p := range wanted {
			img, err := c.best(ctx, all.images, p)
			if err != nil {
				return nil, err
			}
			if !slices.ContainsFunc(imgs, func(i *image) bool { return i.desc.Digest == img.desc.Digest }) {
				imgs = append(imgs, img)
			}
		}
		return imgs, nil
	}
	for _, cand := range all.images {
		if cand.platform != nil && cand.platform.OS != "linux" {
			all.skipped = append(all.skipped, platforms.Format(*cand.platform))
			continue
		}
		if all.hasTarOf(cand) {
			continue
		}
		img, err := c.load(ctx, cand)
		if cand.inIndex && errors.Is(err, errNoImage) {
			all.skipped = append(all.skipped, cand.desc.Digest.String())
			continue
		}
		if err != nil {
			return nil, err
		}
		imgs = append(imgs, img)
	}
	if len(imgs) == 0 {
		return nil, fmt.Errorf("%s holds no Linux image", c.src)
	}
	return imgs, nil
}

// hasTarOf reports whether cand is the EROFS image of an index that also holds
// the tar image of the same platform, from which it was made.
func (f *found) hasTarOf(cand candidate) bool {
	if cand.platform == nil || !slices.Contains(cand.platform.OSFeatures, osFeature) {
		return false
	}
	want := plain(*cand.platform)
	return slices.ContainsFunc(f.images, func(o candidate) bool {
		return o.platform != nil && !slices.Contains(o.platform.OSFeatures, osFeature) &&
			platforms.FormatAll(plain(*o.platform)) == platforms.FormatAll(want)
	})
}

// candidates lists what root leads to.
func (c *conversion) candidates(ctx context.Context, root ocispec.Descriptor, depth int, all *found) error {
	if images.IsManifestType(root.MediaType) {
		all.images = append(all.images, candidate{desc: root, platform: root.Platform, inIndex: depth > 0})
		return nil
	}
	if !images.IsIndexType(root.MediaType) || depth == maxDepth {
		return fmt.Errorf("%s: %s is a %q, which is no image", c.src, root.Digest, root.MediaType)
	}
	raw, err := c.readJSON(ctx, root)
	if err != nil {
		return err
	}
	var idx ocispec.Index
	if err := json.Unmarshal(raw, &idx); err != nil {
		return fmt.Errorf("index %s is not JSON: %w", root.Digest, err)
	}
	if len(idx.Manifests) > maxEntries {
		return fmt.Errorf("index %s has %d entries; at most %d are read", root.Digest, len(idx.Manifests), maxEntries)
	}
	for _, m := range idx.Manifests {
		if a, ok := attestationOf(m); ok {
			all.attestations = append(all.attestations, a)
			continue
		}
		isImage := images.IsManifestType(m.MediaType) || images.IsIndexType(m.MediaType)
		if !isImage || m.ArtifactType != "" || (m.Platform != nil && m.Platform.OS == "unknown") {
			all.skipped = append(all.skipped, m.Digest.String())
			continue
		}
		if err := c.candidates(ctx, m, depth+1, all); err != nil {
			return err
		}
	}
	return nil
}

// best returns the candidate for p. For this machine, which nil means, it is the one
// that containerd would choose, a lesser variant or architecture that runs here
// among them; who names a platform gets that one.
func (c *conversion) best(ctx context.Context, cands []candidate, p *ocispec.Platform) (*image, error) {
	var matcher platforms.MatchComparer
	if p != nil {
		matcher = platforms.OnlyStrict(*p)
	} else {
		host := platforms.DefaultSpec()
		p, matcher = &host, platforms.Only(host)
	}
	var found *image
	var have []string
	for _, cand := range cands {
		if cand.platform != nil && !matcher.Match(plain(*cand.platform)) {
			have = append(have, platforms.Format(*cand.platform))
			continue
		}
		if found != nil && cand.platform != nil && !matcher.Less(plain(*cand.platform), plain(found.platform)) {
			continue
		}
		img, err := c.load(ctx, cand)
		if cand.inIndex && errors.Is(err, errNoImage) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if !matcher.Match(plain(img.platform)) {
			have = append(have, platforms.Format(img.platform))
			continue
		}
		if found == nil || matcher.Less(plain(img.platform), plain(found.platform)) {
			found = img
		}
	}
	if found == nil {
		text := fmt.Sprintf("%s has no image for %s; it has %s", c.src, platforms.Format(*p), cmp.Or(strings.Join(have, ", "), "none at all"))
		return nil, &failure{text, ErrPlatform, errdefs.ErrNotFound}
	}
	return found, nil
}

// errNoImage is said of a manifest of something else, such as a chart. An index may
// hold some beside its images.
var errNoImage = errors.New("not an image")

// plain leaves features out: an image with native layers may ask for "erofs",
// which no host platform lists.
func plain(p ocispec.Platform) ocispec.Platform {
	p.OSFeatures = nil
	return platforms.Normalize(p)
}

// load reads a manifest and its config and checks that they fit together.
func (c *conversion) load(ctx context.Context, cand candidate) (*image, error) {
	img := &image{desc: cand.desc}
	if cand.inIndex {
		img.entry = cand.desc
	}
	raw, err := c.readJSON(ctx, cand.desc)
	if err != nil {
		return nil, err
	}
	img.raw = raw
	if err := json.Unmarshal(raw, &img.manifest); err != nil {
		return nil, fmt.Errorf("manifest %s is not JSON: %w", cand.desc.Digest, err)
	}
	if !images.IsConfigType(img.manifest.Config.MediaType) {
		return nil, fmt.Errorf("%s: %s holds a %q: %w", c.src, cand.desc.Digest, img.manifest.Config.MediaType, errNoImage)
	}
	if img.rawConfig, err = c.readJSON(ctx, img.manifest.Config); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(img.rawConfig, &img.config); err != nil {
		return nil, fmt.Errorf("config %s is not JSON: %w", img.manifest.Config.Digest, err)
	}
	if len(img.manifest.Layers) == 0 {
		return nil, fmt.Errorf("%s: manifest %s has no layers", c.src, cand.desc.Digest)
	}
	if n, m := len(img.manifest.Layers), len(img.config.RootFS.DiffIDs); n != m {
		return nil, fmt.Errorf("%s: manifest %s has %d layers, but its config %d diff ids", c.src, cand.desc.Digest, n, m)
	}
	for _, id := range img.config.RootFS.DiffIDs {
		if err := id.Validate(); err != nil {
			return nil, fmt.Errorf("config %s: diff id %.80q: %w", img.manifest.Config.Digest, string(id), err)
		}
	}
	img.platform = img.config.Platform
	if img.platform.OS == "" && cand.platform != nil {
		img.platform = *cand.platform
	}
	return img, nil
}

// rewriteConfig sets the diff ids and adds the feature "erofs" to the platform,
// or takes it away. Everything else stays as it was, fields that we do not know
// included.
func rewriteConfig(raw []byte, diffIDs any, native bool) ([]byte, error) {
	fields, err := parseObject(raw)
	if err != nil {
		return nil, fmt.Errorf("config is %w", err)
	}
	var config struct {
		Features []string `json:"os.features"`
	}
	if err := json.Unmarshal(raw, &config); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	features := slices.DeleteFunc(config.Features, func(f string) bool { return f == osFeature })
	if native {
		features = append(features, osFeature)
	}
	if err := fields.set("rootfs", map[string]any{"type": "layers", "diff_ids": diffIDs}); err != nil {
		return nil, err
	}
	if err := fields.set("os.features", features); err != nil {
		return nil, err
	}
	if len(features) == 0 {
		fields.remove("os.features")
	}
	return json.Marshal(fields)
}

// osFeature tells a runtime that the layers are EROFS images.
const osFeature = "erofs"
