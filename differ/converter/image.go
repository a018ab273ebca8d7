package converter

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"

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
	jobs map[digest.Digest]*job
}

// Image converts the image of src and writes it to dst. An image of one
// platform becomes a plain manifest. Several become an index whose entries
// carry no os.features: default clients cannot select an entry that does.
func Image(ctx context.Context, src Source, dst Target, opts Options) (Result, error) {
	c := &conversion{src: src, dst: dst, opts: opts.withDefaults(), jobs: make(map[digest.Digest]*job)}
	res := Result{Source: src.String(), Target: dst.String()}
	if u, ok := src.(interface{ unpackBelow(dir string) }); ok {
		u.unpackBelow(opts.WorkDir)
	}
	root, err := src.Root(ctx)
	if err != nil {
		return res, fmt.Errorf("finding %s: %w", src, err)
	}
	imgs, skipped, err := c.selectImages(ctx, root)
	if err != nil {
		return res, err
	}
	res.Skipped = skipped
	if err := c.convertLayers(ctx, imgs); err != nil {
		return res, err
	}
	entries := make([]ocispec.Descriptor, 0, len(imgs))
	var raw []byte
	for _, img := range imgs {
		var entry ocispec.Descriptor
		var ir ImageResult
		if entry, raw, ir, err = c.writeImage(ctx, img); err != nil {
			return res, err
		}
		entries = append(entries, entry)
		res.Images = append(res.Images, ir)
	}
	top := entries[0]
	top.Platform = nil
	if len(entries) > 1 {
		if top, raw, err = c.writeIndex(ctx, root, entries); err != nil {
			return res, err
		}
	}
	if err := dst.Finish(ctx, top, raw); err != nil {
		return res, fmt.Errorf("naming the image in %s: %w", dst, err)
	}
	res.Digest, res.MediaType = top.Digest, top.MediaType
	return res, nil
}

func (o Options) withDefaults() Options {
	if o.Parallel <= 0 {
		o.Parallel = 2
	}
	if o.Layer.SpoolDir == "" {
		o.Layer.SpoolDir = o.WorkDir
	}
	if len(o.Platforms) == 0 {
		o.Platforms = []ocispec.Platform{platforms.DefaultSpec()}
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
		Annotations: img.manifest.Annotations,
	}
	var diffIDs []digest.Digest
	for _, l := range img.manifest.Layers {
		lr := c.jobs[l.Digest].result
		if lr.Reused {
			// The blob is shared, what its own manifest says about it is not.
			lr.desc = l
			lr.DiffID = img.config.RootFS.DiffIDs[len(diffIDs)]
		}
		m.Layers = append(m.Layers, lr.desc)
		diffIDs = append(diffIDs, lr.DiffID)
		ir.Layers = append(ir.Layers, lr)
	}
	fail := func(err error) (ocispec.Descriptor, []byte, ImageResult, error) {
		return ocispec.Descriptor{}, nil, ir, err
	}
	config, err := rewriteConfig(img.rawConfig, diffIDs)
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
	p.OSFeatures = nil
	desc.Platform = &p
	ir.Digest = desc.Digest
	return desc, raw, ir, nil
}

// writeIndex puts an index of the entries with the annotations of the old one.
func (c *conversion) writeIndex(ctx context.Context, root ocispec.Descriptor, entries []ocispec.Descriptor) (ocispec.Descriptor, []byte, error) {
	old, err := c.readJSON(ctx, root)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	var was ocispec.Index
	if err := json.Unmarshal(old, &was); err != nil {
		return ocispec.Descriptor{}, nil, fmt.Errorf("index %s is not JSON: %w", root.Digest, err)
	}
	raw, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: entries, Annotations: was.Annotations,
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
	if desc.Digest.Algorithm().FromBytes(b) != desc.Digest {
		return nil, fmt.Errorf("%s from %s does not match its digest", desc.Digest, c.src)
	}
	return b, nil
}
