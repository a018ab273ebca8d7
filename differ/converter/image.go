package converter

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// conversion is one call of Image.
type conversion struct {
	src  Source
	dst  Target
	opts Options
	keep *keep
	// export is set when native layers become tars.
	export *ExportOptions
	jobs   map[digest.Digest]*job

	mu       sync.Mutex
	warnings []string
}

func (c *conversion) warn(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.warnings = append(c.warnings, fmt.Sprintf(format, args...))
}

// Image converts the image of src and writes it to dst, in the shape that
// Options.Output says. Errors wrap one of the kinds of this package where there is one.
func Image(ctx context.Context, src Source, dst Target, opts Options) (Result, error) {
	c := &conversion{src: src, dst: dst, opts: opts.withDefaults(), jobs: make(map[digest.Digest]*job)}
	return c.result(ctx)
}

// result runs the conversion and describes it.
func (c *conversion) result(ctx context.Context) (Result, error) {
	res := Result{Source: c.src.String(), Target: c.dst.String()}
	err := c.run(ctx, &res)
	slices.Sort(c.warnings) // they come from several goroutines
	res.Warnings = c.warnings
	return res, NoSpace(err, c.opts.WorkDir)
}

func (c *conversion) run(ctx context.Context, res *Result) (err error) {
	if err := c.opts.Layer.Check(); err != nil {
		return err
	}
	if u, ok := c.src.(interface{ unpackBelow(dir string) }); ok {
		u.unpackBelow(c.opts.WorkDir)
	}
	root, err := c.src.Root(ctx)
	if err != nil {
		return fmt.Errorf("finding %s: %w", c.src, err)
	}
	imgs, skipped, err := c.selectImages(ctx, root)
	if err != nil {
		return err
	}
	res.Skipped = skipped
	if c.keep, err = openKeep(c.opts.KeepDir); err != nil {
		return err
	}
	if err := c.convertLayers(ctx, imgs); err != nil {
		return err
	}
	res.Referrers = c.findReferrers(ctx, subjects(root, imgs))
	top, raw, err := c.writeAll(ctx, root, imgs, res)
	if err != nil {
		return err
	}
	if err := c.dst.Finish(ctx, top, raw); err != nil {
		return fmt.Errorf("naming the image in %s: %w", c.dst, err)
	}
	c.forget()
	res.Digest, res.MediaType = top.Digest, top.MediaType
	return nil
}

// subjects are the documents of the source that something may refer to.
func subjects(root ocispec.Descriptor, imgs []*image) []digest.Digest {
	out := []digest.Digest{root.Digest}
	for _, img := range imgs {
		if img.desc.Digest != root.Digest {
			out = append(out, img.desc.Digest)
		}
	}
	return out
}

// writeAll writes everything but layers and returns what is to be named.
func (c *conversion) writeAll(ctx context.Context, root ocispec.Descriptor, imgs []*image, res *Result) (top ocispec.Descriptor, raw []byte, err error) {
	var tars, entries []ocispec.Descriptor
	for _, img := range imgs {
		if img.tar {
			tar, err := c.copyImage(ctx, img)
			if err != nil {
				return top, nil, err
			}
			tars = append(tars, tar)
		} else if c.opts.Output == Index {
			c.warn("the image for %s has native layers already, so there is no tar image to stand beside it", platforms.Format(img.platform))
		}
		entry, b, ir, err := c.writeImage(ctx, img)
		if err != nil {
			return top, nil, err
		}
		raw = b
		entries = append(entries, entry)
		res.Images = append(res.Images, ir)
	}
	attested, err := c.attest(ctx, imgs, entries, res)
	if err != nil {
		return top, nil, err
	}
	if c.hasIndex(imgs) {
		return c.writeIndex(ctx, root, slices.Concat(tars, entries, attested))
	}
	top = entries[0]
	top.Platform, top.Annotations = nil, nil
	return top, raw, nil
}

// hasIndex reports whether the result is an index.
func (c *conversion) hasIndex(imgs []*image) bool { return len(imgs) > 1 || c.opts.Output == Index }

// copyImage puts config and manifest of a tar image as they are. Its layers were
// copied with their conversion.
func (c *conversion) copyImage(ctx context.Context, img *image) (ocispec.Descriptor, error) {
	if err := c.put(ctx, img.manifest.Config, img.rawConfig); err != nil {
		return img.desc, err
	}
	if err := c.put(ctx, img.desc, img.raw); err != nil {
		return img.desc, err
	}
	if img.entry.Platform != nil {
		return img.entry, nil // as it was
	}
	p := img.platform
	return ocispec.Descriptor{
		MediaType: img.desc.MediaType, Digest: img.desc.Digest, Size: img.desc.Size, Annotations: img.entry.Annotations, Platform: &p,
	}, nil
}

func (o Options) withDefaults() Options {
	if o.Parallel <= 0 {
		o.Parallel = 2
	}
	if o.Layer.SpoolDir == "" {
		o.Layer.SpoolDir = o.WorkDir
	}
	if o.Progress == nil {
		o.Progress = func(Event) {}
	}
	return o
}

// writeImage puts config and manifest of a converted image.
func (c *conversion) writeImage(ctx context.Context, img *image) (ocispec.Descriptor, []byte, ImageResult, error) {
	ir := ImageResult{Platform: platforms.Format(img.platform), Source: img.desc.Digest}
	m := ocispec.Manifest{
		Versioned:   specs.Versioned{SchemaVersion: 2},
		MediaType:   ocispec.MediaTypeImageManifest,
		Annotations: img.manifest.Annotations, ArtifactType: img.manifest.ArtifactType, Subject: img.manifest.Subject,
	}
	var diffIDs []digest.Digest
	for _, l := range img.manifest.Layers {
		lr := c.jobs[l.Digest].result
		if lr.Reused {
			// The blob is shared, what its own manifest says about it is not.
			lr.desc = l
			lr.DiffID = img.config.RootFS.DiffIDs[len(diffIDs)]
		} else {
			lr.desc.Annotations = LayerAnnotations(l.Annotations, lr.desc.Annotations)
		}
		m.Layers = append(m.Layers, lr.desc)
		diffIDs = append(diffIDs, lr.DiffID)
		ir.Layers = append(ir.Layers, lr)
	}
	fail := func(err error) (ocispec.Descriptor, []byte, ImageResult, error) {
		return ocispec.Descriptor{}, nil, ir, err
	}
	config, err := rewriteConfig(img.rawConfig, diffIDs, c.export == nil)
	if err != nil {
		return fail(err)
	}
	m.Config = describe(ocispec.MediaTypeImageConfig, config)
	if err := c.put(ctx, m.Config, config); err != nil {
		return fail(err)
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return fail(err)
	}
	desc := describe(ocispec.MediaTypeImageManifest, raw)
	if err := c.put(ctx, desc, raw); err != nil {
		return fail(err)
	}
	p := img.platform
	if img.entry.Platform != nil {
		p = *img.entry.Platform // which may say more than the config
	}
	p.OSFeatures = slices.DeleteFunc(slices.Clone(p.OSFeatures), func(f string) bool { return f == osFeature })
	if c.opts.Output == Index {
		p.OSFeatures = append(p.OSFeatures, osFeature)
	}
	desc.Platform, desc.Annotations = &p, img.entry.Annotations
	ir.Digest = desc.Digest
	return desc, raw, ir, nil
}

// foreign are the beginnings of annotations that describe the bytes of a source
// layer to some lazy loader, and would be untrue of the new one.
var foreign = []string{"containerd.io/snapshot/", "org.erofs.", "io.github.containers.zstd-chunked.", "io.containers.estargz.", "com.amazon.soci."}

// LayerAnnotations returns the annotations of a converted layer: its own, and
// what the source layer said that does not depend on its bytes.
func LayerAnnotations(source, own map[string]string) map[string]string {
	out := make(map[string]string, len(source)+len(own))
	for k, v := range source {
		if !slices.ContainsFunc(foreign, func(p string) bool { return strings.HasPrefix(k, p) }) {
			out[k] = v
		}
	}
	maps.Copy(out, own)
	return out
}

// writeIndex puts an index of the entries. Everything else is as in the old one,
// if there was one.
func (c *conversion) writeIndex(ctx context.Context, root ocispec.Descriptor, entries []ocispec.Descriptor) (ocispec.Descriptor, []byte, error) {
	var was ocispec.Index
	if images.IsIndexType(root.MediaType) {
		old, err := c.readJSON(ctx, root)
		if err != nil {
			return ocispec.Descriptor{}, nil, err
		}
		if err := json.Unmarshal(old, &was); err != nil {
			return ocispec.Descriptor{}, nil, fmt.Errorf("index %s is not JSON: %w", root.Digest, err)
		}
	}
	raw, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: entries, Annotations: was.Annotations, ArtifactType: was.ArtifactType, Subject: was.Subject,
	})
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	desc := describe(ocispec.MediaTypeImageIndex, raw)
	return desc, raw, c.put(ctx, desc, raw)
}

func describe(mediaType string, b []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
}

func (c *conversion) put(ctx context.Context, desc ocispec.Descriptor, b []byte) error {
	_, err := c.dst.Put(ctx, desc, func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b)), nil
	})
	return err
}

// readJSON reads a document whole and verifies it.
func (c *conversion) readJSON(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("descriptor in %s: %w", c.src, err)
	}
	if desc.Size < 0 || desc.Size > maxJSON {
		return nil, fmt.Errorf("%s in %s has %d bytes; at most %d are read", desc.Digest, c.src, desc.Size, int64(maxJSON))
	}
	rc, err := c.src.Open(ctx, desc)
	if err != nil {
		return nil, fmt.Errorf("reading %s from %s: %w", desc.Digest, c.src, err)
	}
	defer rc.Close()
	b, err := io.ReadAll(io.LimitReader(rc, maxJSON+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s from %s: %w", desc.Digest, c.src, err)
	}
	if int64(len(b)) != desc.Size {
		return nil, fmt.Errorf("%s from %s has %d bytes, its descriptor says %d", desc.Digest, c.src, len(b), desc.Size)
	}
	if desc.Digest.Algorithm().FromBytes(b) != desc.Digest {
		return nil, fmt.Errorf("%s from %s does not match its digest", desc.Digest, c.src)
	}
	return b, nil
}
