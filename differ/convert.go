package differ

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strconv"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// Convert reads the tar of a layer (plain, gzip or zstd, whatever it is called)
// from src to its end and writes the native layer blob to dst. The same tar and
// the same options give the same bytes, on any number of workers, from every build
// with the same ZstdEncoder.
//
// The data waits in unnamed files under cfg.SpoolDir; memory does not grow with
// it, only with the number of files and chunks. When Convert returns, with or
// without an error, nothing of it is left and dst may hold part of a blob. src is
// read ahead; a Read that has begun is waited for, also after an error.
//
// An entry that cannot be part of a layer gives an *EntryError, more of them than a
// layer may have a *LimitError, and a tar that ends too early an error that wraps
// ErrTruncated.
func Convert(ctx context.Context, src io.Reader, dst io.Writer, cfg Config) (Result, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return Result{}, err
	}
	in, err := openInput(ctx, src, cfg.Progress)
	defer in.close()
	if err != nil {
		return Result{}, err
	}
	st, err := newStore(ctx, cfg)
	if err != nil {
		return Result{}, err
	}
	res, err := convert(ctx, in, st, dst, cfg)
	return res, errors.Join(err, st.close())
}

func convert(ctx context.Context, in *input, st *store, dst io.Writer, cfg Config) (Result, error) {
	ing := newIngest(st, cfg.Implied)
	err := ing.run(ctx, in)
	if err == nil {
		err = in.drain()
	}
	if ferr := st.finish(); ferr != nil { // what a reader sees of it is only a consequence
		err = ferr
	}
	if err != nil {
		return Result{}, err
	}
	res, err := writeBlob(ctx, ing, st, dst, cfg, nil)
	if err != nil {
		return Result{}, err
	}
	res.TarDiffID, res.TarSize = in.digest(), in.n
	res.SpoolSize = st.big.n + st.small.n
	return res, nil
}

// writeBlob is the second pass: it lays out what ing took in, whose data is in data,
// and writes the blob to dst. report, which may be nil, hears how much of the data has
// been written.
func writeBlob(ctx context.Context, ing *ingest, data dataSource, dst io.Writer, cfg Config, report func(done, of int64)) (Result, error) {
	first := ing.recordsAt(cfg.First)
	tree, err := ing.b.Tree()
	if err != nil {
		return Result{}, fmt.Errorf("building the file tree: %w", err)
	}
	p := planData(tree, data.files(), first)
	layout, err := newLayout(tree)
	if err != nil {
		return Result{}, err
	}
	if err := identify(layout, p.size); err != nil {
		return Result{}, err
	}
	e := newEmitter(cfg, data, p, dst)
	e.report = report
	if err := e.run(ctx, func(w io.Writer) error {
		_, err := layout.WriteMeta(w, p.size)
		return err
	}); err != nil {
		return Result{}, err
	}
	res := e.result()
	res.Inodes = tree.Len()
	res.MetaSize = layout.MetaSize()
	return res, nil
}

// newLayout lays out an image of one device.
func newLayout(t *erofs.Tree) (*erofs.Layout, error) {
	l, err := erofs.NewLayout(t, erofs.WriteOptions{BlockBits: blockBits})
	if err != nil {
		return nil, fmt.Errorf("laying out the image: %w", err)
	}
	if most := erofs.DefaultPolicy(0).MaxMeta; l.MetaSize() > most { // which the strict parser would refuse
		return nil, &LimitError{What: "bytes of metadata", Most: most}
	}
	return l, nil
}

// identify gives an image with a data area of dataSize bytes a UUID made of all its
// metadata, which is known before its data has been read. So images that differ in
// nothing but bytes of files have the same; nothing tells them apart by it.
func identify(l *erofs.Layout, dataSize int64) error {
	h := sha256.New()
	if _, err := l.WriteMeta(h, dataSize); err != nil {
		return fmt.Errorf("making the image's UUID: %w", err)
	}
	l.SetUUID(uuidOf([sha256.Size]byte(h.Sum(nil))))
	return nil
}

// uuidOf makes a UUID of the kind that is for anyone's own use (RFC 9562,
// version 8) from the first bits of a digest.
func uuidOf(sum [sha256.Size]byte) (u [16]byte) {
	copy(u[:], sum[:])
	u[6] = u[6]&0x0f | 0x80
	u[8] = u[8]&0x3f | 0x80
	return u
}

// result describes the blob that was written.
func (e *emitter) result() Result {
	blob := digest.NewDigest(digest.SHA256, e.blobSum)
	indexAt := chunk.Extent{Off: e.blobOff - e.indexSize, Len: e.indexSize}
	mediaType, diffID := chunk.MediaTypeLayer, blob
	notes := map[string]string{
		chunk.AnnotationIndexRange:  chunk.FormatRange(indexAt),
		chunk.AnnotationIndexDigest: e.indexID.String(),
		chunk.LabelBlobSize:         strconv.FormatInt(e.blobOff, 10),
		chunk.LabelPinned:           chunk.FormatEnds(e.metaEnd.image, e.metaEnd.blob),
	}
	if e.cfg.Form == Zstd {
		mediaType, diffID = chunk.MediaTypeLayerZstd, digest.NewDigest(digest.SHA256, e.imageSum)
		notes[chunk.AnnotationUncompressedDigest] = diffID.String()
		notes[chunk.LabelUncompressedDigest] = diffID.String()
	}
	notes[chunk.LabelIndexRange] = notes[chunk.AnnotationIndexRange]
	notes[chunk.LabelIndexDigest] = notes[chunk.AnnotationIndexDigest]
	notes[chunk.LabelMediaType] = mediaType
	if e.firstEnd.blob > 0 {
		notes[chunk.LabelPrefetch] = chunk.FormatEnds(e.firstEnd.image, e.firstEnd.blob)
	}
	res := Result{
		Descriptor: ocispec.Descriptor{
			MediaType: mediaType, Digest: blob, Size: e.blobOff, Annotations: notes,
		},
		DiffID:    diffID,
		ImageSize: e.imageOff,
		IndexSize: e.indexSize,
		Chunks:    e.index.Len(),
	}
	if e.verity != nil {
		e.verity.Annotate(notes)
		res.ImageSize, res.VeritySize = e.verity.HashOffset, e.imageOff-e.verity.HashOffset
	}
	return res
}
