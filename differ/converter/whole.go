package converter

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// OpenWhole opens a native layer that may have no chunk index: it reads the blob from
// its first byte to its last, holds it against its digest, and keeps its image, and what
// follows that, in an unnamed file in dir; empty means the system's directory for
// temporary files. What the strict parser refuses gives a *erofs.RefusedError.
func OpenWhole(ctx context.Context, src Source, desc ocispec.Descriptor, dir string) (_ *ImageData, err error) {
	f, err := tempFile(dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	size, err := unpackWhole(ctx, src, desc, f)
	if err != nil {
		return nil, fmt.Errorf("unpacking layer %s: %w", desc.Digest, err)
	}
	parsed, err := erofs.Parse(io.NewSectionReader(f, 0, size), erofs.DefaultPolicy(size))
	if err != nil {
		return nil, err
	}
	return &ImageData{Tree: parsed.Tree, Data: f, Size: size, Close: f.Close}, nil
}

// unpackWhole writes the image data of a blob to w and returns the length of the image.
func unpackWhole(ctx context.Context, src Source, desc ocispec.Descriptor, w io.Writer) (int64, error) {
	rc, err := src.Open(ctx, desc)
	if err != nil {
		return 0, err
	}
	in := newChecked(ctx, rc, desc, func(int64) {})
	defer in.Close()
	size, err := copyWhole(ctx, w, in)
	if verr := in.verify(err == nil); verr != nil {
		return 0, verr // an image that makes no sense is only a consequence
	}
	return size, err
}

// copyWhole decompresses it where it must be. Nothing reads in any more afterwards.
func copyWhole(ctx context.Context, w io.Writer, in *checked) (int64, error) {
	if !chunk.IsNativeZstd(in.desc.MediaType) {
		return differ.CopyImage(w, in, chunk.MaxIndexLen)
	}
	dec, err := zstd.NewReader(in, zstd.WithDecoderMaxWindow(differ.MaxWindow))
	if err != nil {
		return 0, err
	}
	defer dec.Close()
	return differ.CopyImage(w, &counting{ctx: ctx, r: dec, report: in.report}, 0) // few bytes can be many
}
