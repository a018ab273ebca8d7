package differ

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// sparseWriter appends to a file and leaves blocks of zeros out.
type sparseWriter struct {
	f *os.File
	n int64
}

// Write implements io.Writer.
func (w *sparseWriter) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		blank := zeroPrefix(p)
		w.n += int64(blank)
		p = p[blank:]
		data := dataPrefix(p)
		if data == 0 {
			continue
		}
		if _, err := w.f.WriteAt(p[:data], w.n); err != nil {
			return total - len(p), fmt.Errorf("writing layer file: %w", err)
		}
		w.n += int64(data)
		p = p[data:]
	}
	return total, nil
}

// pad extends the file to a multiple of the block size.
func (w *sparseWriter) pad() { w.n = alignUp(w.n) }

// finish gives the file its length, which ends in a hole when zeros were last.
func (w *sparseWriter) finish() error {
	if err := w.f.Truncate(w.n); err != nil {
		return fmt.Errorf("sizing layer file: %w", err)
	}
	return nil
}

// zeroPrefix returns how many bytes of zeros p begins with, in whole blocks or
// to its end.
func zeroPrefix(p []byte) int {
	n := 0
	for n < len(p) {
		k := min(blockSize, len(p)-n)
		if !bytes.Equal(p[n:n+k], zeros[:k]) {
			break
		}
		n += k
	}
	return n
}

// dataPrefix returns how many bytes precede the next block of zeros in p.
func dataPrefix(p []byte) int {
	n := 0
	for n < len(p) {
		k := min(blockSize, len(p)-n)
		if n > 0 && bytes.Equal(p[n:n+k], zeros[:k]) {
			break
		}
		n += k
	}
	return n
}

// imageSink puts file data straight into the data area of an image, in the order
// of the tar. Only a local image may be so: it has no chunks to share.
type imageSink struct {
	w     sparseWriter
	buf   []byte
	files []imageFile
	runs  []run
}

// imageFile says where the data of one file is.
type imageFile struct {
	size, addr int64
	run, runs  int
}

func (s *imageSink) put(ctx context.Context, r io.Reader, size int64) (int, error) {
	f := imageFile{size: size, addr: s.w.n, run: len(s.runs)}
	var err error
	s.runs, err = scanRuns(ctx, r, size, s.buf, s.runs, func(p []byte) error {
		_, err := s.w.Write(p)
		return err
	})
	s.w.pad()
	f.runs = len(s.runs) - f.run
	s.files = append(s.files, f)
	return len(s.files) - 1, err
}

// place tells the tree where the data of its files is.
func (s *imageSink) place(t *erofs.Tree) {
	var ext []erofs.Extent
	for k := range t.Len() {
		i := erofs.Inode(k)
		e := t.Extents(i)
		if len(e) == 0 {
			continue
		}
		f := &s.files[recordOf(e)]
		ext = extentsOf(ext[:0], s.runs[f.run:f.run+f.runs], f.size, f.addr)
		t.SetExtents(i, ext)
	}
}

// applyTar converts a tar to the image in f. The data of files goes to its
// final file at once, and the metadata, whose length is known only then, is
// put before it. Clients that commit a container without asking for a media type
// call an EROFS image a tar; it is taken for what it is.
func applyTar(ctx context.Context, u *unpacking) (ocispec.Descriptor, error) {
	in, err := openInput(ctx, u.src, nil)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer in.close()
	f := u.f
	if in.isImage() {
		n, err := unpackImage(f, in)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		return ocispec.Descriptor{MediaType: chunk.MediaTypeLayer, Digest: in.digest(), Size: n}, nil
	}
	sink := &imageSink{w: sparseWriter{f: f}, buf: make([]byte, scanLen)}
	ing := newIngest(sink, u.implied)
	if err := ing.run(ctx, in); err != nil {
		return ocispec.Descriptor{}, err
	}
	if err := in.drain(); err != nil {
		return ocispec.Descriptor{}, err
	}
	tree, err := ing.b.Tree()
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("building the file tree: %w", err)
	}
	sink.place(tree)
	layout, err := newLayout(tree, in.rawSum())
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if err := sink.w.finish(); err != nil {
		return ocispec.Descriptor{}, err
	}
	if err := insertFront(f, layout.MetaSize(), sink.w.n); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("making room for metadata in the layer file: %w", err)
	}
	if _, err := layout.WriteMeta(io.NewOffsetWriter(f, 0), sink.w.n); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("writing metadata: %w", err)
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: in.digest(), Size: in.n}, nil
}
