package converter

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/differ/converter/layertar"
	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// ImageData is the image of a native layer, open for reading at random.
type ImageData struct {
	// Tree is what the strict parser made of it.
	Tree *erofs.Tree
	// Data gives verified bytes, in the address space of image data.
	Data io.ReaderAt
	// Size is the length of Data in bytes.
	Size int64
	// Close frees it.
	Close func() error
}

// LayerOpener opens a native layer of the source.
type LayerOpener func(ctx context.Context, desc ocispec.Descriptor) (*ImageData, error)

// Compression is that of the tar layers that Export writes.
type Compression uint8

const (
	// Gzip is what every client reads.
	Gzip Compression = iota
	// ZstdTar is smaller and faster; clients of the last years read it.
	ZstdTar
	// Uncompressed is a plain tar.
	Uncompressed
)

// String returns the compression as the command line writes it.
func (c Compression) String() string {
	switch c {
	case ZstdTar:
		return "zstd"
	case Uncompressed:
		return "none"
	}
	return "gzip"
}

func (c Compression) mediaType() string {
	switch c {
	case ZstdTar:
		return ocispec.MediaTypeImageLayerZstd
	case Uncompressed:
		return ocispec.MediaTypeImageLayer
	}
	return ocispec.MediaTypeImageLayerGzip
}

// writer returns what compresses into w, on one core, so that equal layers give
// equal bytes.
func (c Compression) writer(w io.Writer) (io.WriteCloser, error) {
	switch c {
	case ZstdTar:
		return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
	case Uncompressed:
		return nopCloser{w}, nil
	}
	return gzip.NewWriterLevel(w, gzip.DefaultCompression)
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// ExportOptions say how Export works. Open must be set.
type ExportOptions struct {
	// Open opens the native layers of the source.
	Open LayerOpener
	// Compression is that of the new layers.
	Compression Compression
	// Platforms, AllPlatforms, Parallel, WorkDir and Progress are as in Options.
	// Bytes of Convert events are those of file data in the tar.
	Platforms    []ocispec.Platform
	AllPlatforms bool
	Parallel     int
	WorkDir      string
	Progress     func(Event)
}

// Export is the way back from Image: it writes the image of src to dst with the
// native layers as OCI tar layers of equal content. Layers that are tars are
// carried over as they are. The same image and options give the same digests.
func Export(ctx context.Context, src Source, dst Target, opts ExportOptions) (Result, error) {
	o := Options{Platforms: opts.Platforms, AllPlatforms: opts.AllPlatforms, Parallel: opts.Parallel, WorkDir: opts.WorkDir, Progress: opts.Progress}
	c := &conversion{src: src, dst: dst, opts: o.withDefaults(), jobs: make(map[digest.Digest]*job), export: &opts}
	return c.result(ctx)
}

// exportLayer brings one layer to the target as a tar.
func (c *conversion) exportLayer(ctx context.Context, j *job) (err error) {
	if !chunk.IsNative(j.desc.MediaType) {
		return c.reuse(ctx, j)
	}
	start := time.Now()
	blob, err := tempFile(c.opts.WorkDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, blob.Close()) }()
	data, err := c.export.Open(ctx, j.desc)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, data.Close()) }()
	d, diffID, size, err := c.pack(ctx, j, data, blob)
	if err != nil {
		return err
	}
	existed, err := c.dst.Put(ctx, d, func(ctx context.Context) (io.ReadCloser, error) {
		return &counting{ctx: ctx, r: io.NewSectionReader(blob, 0, d.Size), report: c.progress(j, Push, d.Size)}, nil
	})
	j.result = LayerResult{
		Source: j.desc.Digest, SourceSize: j.desc.Size, Digest: d.Digest, Size: d.Size, DiffID: diffID, Existed: existed,
		TarSize: size, Inodes: data.Tree.Len(), Seconds: time.Since(start).Seconds(), desc: d,
	}
	return err
}

// pack writes the tar of a layer, compressed, to blob.
func (c *conversion) pack(ctx context.Context, j *job, data *ImageData, blob *os.File) (d ocispec.Descriptor, diffID digest.Digest, size int64, err error) {
	blobSum, tarSum := digest.SHA256.Digester(), digest.SHA256.Digester()
	out := bufio.NewWriterSize(blob, 256<<10)
	stored := &countingWriter{w: io.MultiWriter(out, blobSum.Hash()), report: func(int64) {}}
	zw, err := c.export.Compression.writer(stored)
	if err != nil {
		return d, "", 0, fmt.Errorf("preparing the compression: %w", err)
	}
	plain := &countingWriter{w: io.MultiWriter(zw, tarSum.Hash()), report: c.packed(j, data.Tree)}
	err = layertar.Write(ctx, plain, data.Tree, data.Data)
	// Encoders hold goroutines until they are closed.
	err = cmp.Or(err, zw.Close(), out.Flush())
	if err != nil {
		return d, "", 0, fmt.Errorf("writing the tar: %w", err)
	}
	d = ocispec.Descriptor{MediaType: c.export.Compression.mediaType(), Digest: blobSum.Digest(), Size: stored.n}
	return d, tarSum.Digest(), plain.n, nil
}

// packed returns what reports the progress of a tar. How long it will be is not
// known before, but how much file data is in it.
func (c *conversion) packed(j *job, t *erofs.Tree) func(int64) {
	var total int64
	for i := range t.Len() {
		if len(t.Extents(erofs.Inode(i))) > 0 {
			total += t.Attr(erofs.Inode(i)).Size
		}
	}
	report := c.progress(j, Convert, total)
	return func(n int64) { report(min(n, total)) }
}

// countingWriter counts and reports what goes through.
type countingWriter struct {
	w      io.Writer
	n      int64
	report func(int64)
}

// Write implements io.Writer.
func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	c.report(c.n)
	return n, err
}
