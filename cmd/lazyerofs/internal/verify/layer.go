package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"

	"github.com/lazyerofs/lazyerofs/cmd/lazyerofs/internal/imagedata"
	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
	"github.com/lazyerofs/lazyerofs/fs/format"
)

// kindOf tells how a layer is checked.
func kindOf(mediaType string) string {
	switch {
	case chunk.IsNative(mediaType):
		return "native"
	case images.IsLayerType(mediaType) && !strings.Contains(mediaType, "encrypted"):
		return "tar"
	}
	return "other"
}

// blob checks one blob. An error is about the source.
func (r *run) blob(ctx context.Context, t *task) error {
	rc, err := r.cfg.Layers.Source.Open(ctx, t.desc)
	if err != nil {
		return r.orAbsent(t, err)
	}
	defer rc.Close()
	s := &stream{ctx: ctx, r: rc, sum: t.desc.Digest.Verifier(), limit: t.desc.Size, report: func(n int64) {
		r.cfg.Progress(converter.Event{Layer: t.desc.Digest, Phase: converter.Check, Bytes: n, Total: t.desc.Size})
	}}
	switch t.layer.Kind {
	case "native":
		err = r.native(ctx, t, s)
	case "tar":
		err = r.tar(t, s)
	}
	if err == nil {
		_, err = io.Copy(io.Discard, s)
	}
	if s.err != nil && !errors.Is(s.err, io.EOF) {
		return r.orAbsent(t, s.err)
	}
	if err != nil || t.gone {
		return err
	}
	switch {
	case s.n != t.desc.Size || s.more:
		r.layerFault(t, "size", "layer %s does not have the %d bytes that its descriptor says", t.desc.Digest, t.desc.Size)
	case !s.sum.Verified():
		r.layerFault(t, "digest", "layer %s has other bytes than its digest says", t.desc.Digest)
	}
	return nil
}

func (r *run) orAbsent(t *task, err error) error {
	if !absent(err) {
		return err
	}
	if !t.gone {
		t.gone = true
		r.layerFault(t, "digest", "layer %s is not there", t.desc.Digest)
	}
	return nil
}

// layerFault notes a fault of a layer, up to a number that nobody reads beyond.
func (r *run) layerFault(t *task, check, text string, args ...any) {
	if t.layer.Faults++; t.layer.Faults <= maxFaults {
		r.fault(t.desc.Digest, check, text, args...)
	}
}

// tar holds the uncompressed bytes against the diff id.
func (r *run) tar(t *task, s *stream) error {
	dec, err := compression.DecompressStream(s)
	if err != nil {
		return r.ofStream(t, s, err)
	}
	defer dec.Close()
	got, err := digest.SHA256.FromReader(dec)
	if err != nil {
		return r.ofStream(t, s, err)
	}
	r.diffID(t, got)
	return nil
}

// ofStream says what an error while decoding means: the source's own is
// returned, anything else is a fault.
func (r *run) ofStream(t *task, s *stream, err error) error {
	if s.err != nil && !errors.Is(s.err, io.EOF) {
		return s.err
	}
	r.layerFault(t, "digest", "layer %s cannot be decompressed: %v", t.desc.Digest, err)
	return nil
}

func (r *run) diffID(t *task, got digest.Digest) {
	if t.diffID != "" && t.diffID != got {
		r.layerFault(t, "diff-id", "layer %s has the diff id %s, but the config says %s", t.desc.Digest, got, t.diffID)
	}
}

// native checks an EROFS layer: annotations, index, parser, and, from the stream
// of the whole blob, chunks and diff id.
func (r *run) native(ctx context.Context, t *task, s *stream) error {
	r.annotations(t)
	blob, done, err := r.cfg.Layers.Blob(ctx, t.desc)
	if err != nil {
		return err
	}
	err = func() error {
		for _, f := range r.cfg.Layers.Formats {
			if !f.Match(t.desc) {
				continue
			}
			plan, err := f.Open(ctx, blob, t.desc)
			switch {
			case errors.Is(err, format.ErrNotLazy):
				t.layer.NotLazy = err.Error()
				return r.unindexed(ctx, t, s)
			case err != nil:
				return r.orFault(t, "index", err)
			}
			image := imagedata.NewReader(ctx, blob, plan)
			if err := r.parser(t, image, plan); err != nil {
				return err
			}
			return r.hashed(t, image, plan.Verity, func(tree io.Writer) (bool, error) {
				err := r.chunks(t, s, plan, tree)
				return t.layer.Chunks > 0, err
			})
		}
		return nil
	}()
	if err != nil {
		err = r.orAbsent(t, err)
	}
	return errors.Join(err, done())
}

// orFault makes a fault of an error that is about the layer's bytes.
func (r *run) orFault(t *task, check string, err error) error {
	var corrupt *chunk.CorruptError
	var refused *erofs.RefusedError
	if !errors.As(err, &corrupt) && !errors.As(err, &refused) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	r.layerFault(t, check, "layer %s: %v", t.desc.Digest, err)
	return nil
}

// parser lets the strict parser judge the metadata, read as for a mount.
func (r *run) parser(t *task, image io.ReaderAt, plan *format.Plan) error {
	policy := erofs.DefaultPolicy(plan.ImageSize())
	policy.MetaHint = plan.PinnedHint.End()
	parsed, err := erofs.Parse(image, policy)
	if err != nil {
		return r.orFault(t, "parser", err)
	}
	t.layer.Inodes = parsed.Tree.Len()
	r.places(t, plan.Data, parsed.MetaExtents)
	return nil
}

// chunks checks every chunk, the digest of the image data and the hash tree, of which
// tree is told.
func (r *run) chunks(t *task, s *stream, plan *format.Plan, tree io.Writer) error {
	image := digest.SHA256.Digester()
	good := true
	var stored, data []byte
	for i := range plan.Data.Len() {
		c := plan.Data.At(i)
		if _, err := io.CopyN(io.Discard, s, c.Blob.Off-s.n); err != nil {
			return r.cut(s)
		}
		if int64(cap(stored)) < c.Blob.Len {
			stored = make([]byte, c.Blob.Len)
		}
		stored = stored[:c.Blob.Len]
		if _, err := io.ReadFull(s, stored); err != nil {
			return r.cut(s)
		}
		var err error
		if data, err = plan.Decode(data[:0], stored, c); err != nil {
			good = false
			if err := r.orFault(t, "chunk", fmt.Errorf("chunk %d, image data [%d, %d): %w", i, c.Data.Off, c.Data.End(), err)); err != nil {
				return err
			}
			continue
		}
		image.Hash().Write(data)
		if _, err := tree.Write(data); err != nil {
			return err
		}
	}
	t.layer.Chunks = plan.Data.Len()
	switch {
	case !chunk.IsNativeZstd(t.desc.MediaType):
		r.diffID(t, t.desc.Digest) // index included; that it is right is for the digest
	case good:
		r.uncompressed(t, image.Digest())
	}
	return nil
}

// cut ends the check of a blob that is shorter than its index says; its size is
// a fault of its own.
func (r *run) cut(s *stream) error {
	if s.err != nil && !errors.Is(s.err, io.EOF) {
		return s.err
	}
	return nil
}

// uncompressed holds the digest of the image data against both places that name
// it.
func (r *run) uncompressed(t *task, got digest.Digest) {
	r.diffID(t, got)
	notes := t.desc.Annotations
	if want := cmp.Or(notes[chunk.AnnotationUncompressedDigest], notes[chunk.LabelUncompressedDigest]); want != "" && want != got.String() {
		r.layerFault(t, "annotation", "layer %s has image data with the digest %s, its annotation says %.80q", t.desc.Digest, got, want)
	}
}

// unindexed checks a layer without chunks.
func (r *run) unindexed(ctx context.Context, t *task, s *stream) error {
	data, err := r.cfg.Layers.Open(ctx, t.desc)
	switch {
	case err == nil:
		t.layer.Inodes = data.Tree.Len()
		if err := errors.Join(r.unindexedTree(ctx, t, data.Data), data.Close()); err != nil {
			return err
		}
	case errors.Is(err, os.ErrNotExist) || ctx.Err() != nil:
		return err
	default:
		r.layerFault(t, "parser", "layer %s: %v", t.desc.Digest, err)
		return nil
	}
	if !chunk.IsNativeZstd(t.desc.MediaType) {
		r.diffID(t, t.desc.Digest)
		return nil
	}
	dec, err := zstd.NewReader(s, zstd.WithDecoderMaxWindow(differ.MaxWindow))
	if err != nil {
		return r.ofStream(t, s, err)
	}
	defer dec.Close()
	got, err := digest.SHA256.FromReader(dec)
	if err != nil {
		return r.ofStream(t, s, err)
	}
	r.uncompressed(t, got)
	return nil
}

// stream is a blob on its way, counted and hashed. It ends at the size that the
// descriptor says and notes when there was more.
type stream struct {
	ctx    context.Context // of the one check that reads it
	r      io.Reader
	sum    digest.Verifier
	n      int64
	limit  int64
	more   bool
	err    error // of the source, sticky
	report func(int64)
}

// Read implements io.Reader.
func (s *stream) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	if s.ctx.Err() != nil {
		s.err = context.Cause(s.ctx)
		return 0, s.err
	}
	if s.n == s.limit {
		var one [1]byte
		n, err := io.ReadFull(s.r, one[:])
		s.more, s.err = n > 0, io.EOF
		if err != nil && !errors.Is(err, io.EOF) {
			s.err = err
		}
		return 0, s.err
	}
	n, err := s.r.Read(p[:min(int64(len(p)), s.limit-s.n)])
	s.n += int64(n)
	if _, werr := s.sum.Write(p[:n]); werr != nil {
		err = werr
	}
	s.err = err
	s.report(s.n)
	return n, err
}
