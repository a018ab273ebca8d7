package convertfunc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	ctd "github.com/containerd/containerd/v2/core/images/converter"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// Image returns a function that converts a manifest or an index of the store.
// The store must hold everything of the platforms that opts choose. The
// function returns nil when nothing had to be converted.
func Image(opts converter.Options) ctd.ConvertFunc {
	return func(ctx context.Context, cs content.Store, desc ocispec.Descriptor) (*ocispec.Descriptor, error) {
		dst := &storeTarget{cs: cs}
		res, err := converter.Image(ctx, &storeSource{cs: cs, root: desc}, dst, opts)
		if err != nil {
			return nil, err
		}
		if res.Digest == desc.Digest {
			return nil, nil
		}
		return &dst.root, nil
	}
}

// Layer returns a function that converts a tar layer of the store with cfg. It
// returns nil for everything else. workDir holds temporary data; empty means the
// system's directory for it.
func Layer(cfg differ.Config, workDir string) ctd.ConvertFunc {
	if cfg.SpoolDir == "" {
		cfg.SpoolDir = workDir
	}
	return func(ctx context.Context, cs content.Store, desc ocispec.Descriptor) (*ocispec.Descriptor, error) {
		if !images.IsLayerType(desc.MediaType) || chunk.IsNative(desc.MediaType) {
			return nil, nil
		}
		if _, err := images.DiffCompression(ctx, desc.MediaType); err != nil {
			return nil, nil //nolint:nilerr // a layer of another kind is not ours to convert
		}
		d, err := convert(ctx, cs, desc, cfg, workDir)
		if err != nil {
			return nil, fmt.Errorf("converting layer %s: %w", desc.Digest, err)
		}
		return d, nil
	}
}

// convert makes a native layer of a tar in the store.
func convert(ctx context.Context, cs content.Store, desc ocispec.Descriptor, cfg differ.Config, workDir string) (_ *ocispec.Descriptor, err error) {
	ra, err := cs.ReaderAt(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, ra.Close()) }()
	blob, err := os.CreateTemp(workDir, "lazyerofs-blob-*")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, blob.Close()) }()
	if err := os.Remove(blob.Name()); err != nil {
		return nil, err
	}
	sum := desc.Digest.Verifier()
	in := io.TeeReader(content.NewReader(ra), sum)
	res, err := differ.Convert(ctx, in, blob, cfg)
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return nil, err
	}
	if !sum.Verified() {
		return nil, errors.New("the store gave other bytes than its digest says")
	}
	d := res.Descriptor
	open := func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(io.NewSectionReader(blob, 0, d.Size)), nil
	}
	if _, err := write(ctx, cs, d, open, map[string]string{labels.LabelUncompressed: res.DiffID.String()}); err != nil {
		return nil, err
	}
	d.Annotations = converter.LayerAnnotations(desc.Annotations, res.Descriptor.Annotations)
	return &d, nil
}

// write stores content under its digest, or gives what is there already the
// labels. It asks for a writer first in any case: that is what adds existing
// content to the caller's lease, so that it is not collected meanwhile.
func write(ctx context.Context, cs content.Store, d ocispec.Descriptor, open func(context.Context) (io.ReadCloser, error), l map[string]string) (existed bool, err error) {
	w, err := content.OpenWriter(ctx, cs, content.WithRef("lazyerofs-"+d.Digest.String()), content.WithDescriptor(d))
	if errdefs.IsAlreadyExists(err) {
		return true, label(ctx, cs, d, l)
	}
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	rc, err := open(ctx)
	if err != nil {
		return false, err
	}
	defer rc.Close()
	err = content.Copy(ctx, w, rc, d.Size, d.Digest, content.WithLabels(l))
	if errdefs.IsAlreadyExists(err) {
		return true, label(ctx, cs, d, l)
	}
	return false, err
}

// label adds labels to content.
func label(ctx context.Context, cs content.Store, d ocispec.Descriptor, l map[string]string) error {
	var fields []string
	for k := range l {
		fields = append(fields, "labels."+k)
	}
	if len(fields) == 0 {
		return nil
	}
	_, err := cs.Update(ctx, content.Info{Digest: d.Digest, Labels: l}, fields...)
	return err
}
