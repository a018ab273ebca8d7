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

// sparseWriter appends to a file and leaves blocks of zeros out. Small files and
// what is between them go to the file together: many short writes cost more than
// the copy.
type sparseWriter struct {
	f       *os.File
	n       int64
	buf     []byte // what ends at n and is not in the file yet
	started int64  // what is before it is on its way to the disk
}

const (
	gatherLen = 256 << 10 // bytes that are written at once
	// startLen is how much is written before the disk is told to begin. The layer
	// is synced in the end, and the disk has nothing to do meanwhile.
	startLen = 8 << 20
)

// Write implements io.Writer. What it takes is in the file after flush.
func (w *sparseWriter) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		if blank := zeroPrefix(p); blank > 0 {
			if err := w.flush(); err != nil {
				return total - len(p), err
			}
			w.n += int64(blank)
			p = p[blank:]
			continue
		}
		data := dataPrefix(p)
		if err := w.append(p[:data]); err != nil {
			return total - len(p), err
		}
		p = p[data:]
	}
	return total, nil
}

func (w *sparseWriter) append(p []byte) error {
	if len(w.buf)+len(p) > gatherLen {
		if err := w.flush(); err != nil {
			return err
		}
	}
	if w.buf == nil {
		w.buf = make([]byte, 0, gatherLen)
	}
	w.buf = append(w.buf, p...)
	w.n += int64(len(p))
	return nil
}

func (w *sparseWriter) flush() error {
	if len(w.buf) > 0 {
		if _, err := w.f.WriteAt(w.buf, w.n-int64(len(w.buf))); err != nil {
			return fmt.Errorf("writing layer file: %w", err)
		}
		w.buf = w.buf[:0]
	}
	if w.n-w.started >= startLen {
		startWriting(w.f, w.started, w.n-w.started)
		w.started = w.n
	}
	return nil
}

// pad extends the file to a multiple of the block size.
func (w *sparseWriter) pad() {
	end := alignUp(w.n)
	if len(w.buf) > 0 { // what follows is to go with it
		w.buf = append(w.buf, zeros[:end-w.n]...)
	}
	w.n = end
}

// finish gives the file its length, which ends in a hole when zeros were last.
func (w *sparseWriter) finish() error {
	if err := w.flush(); err != nil {
		return err
	}
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

// roomMost bounds roomFor, and so how much longer than it must be an image looks.
const roomMost = 16 << 20

// roomFor returns how much to leave free for metadata before the data of a layer
// whose blob has that size: enough for most, and nothing on the disk. Moving the
// data up instead would write all of it out and drop it from the page cache.
func roomFor(blob int64) int64 {
	return alignUp(64<<10 + 4*min(max(blob, 0), (roomMost-64<<10)/4))
}

// imageSink puts file data straight into the data area of an image, in the order
// of the tar. Only a local image may be so: it has no chunks to share.
type imageSink struct {
	w     sparseWriter
	room  int64 // where the data begins in the file
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
	f := imageFile{size: size, addr: s.w.n - s.room, run: len(s.runs)}
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

// owner is a file of a tree that has data, and which.
type owner struct {
	inode erofs.Inode
	file  int // in imageSink.files
}

// ownersIn lists the files of t that have data, which still name it by record.
func ownersIn(t *erofs.Tree) []owner {
	var all []owner
	for k := range t.Len() {
		if e := t.Extents(erofs.Inode(k)); len(e) > 0 {
			all = append(all, owner{erofs.Inode(k), recordOf(e)})
		}
	}
	return all
}

// place tells the tree where the data of its files is: gap bytes behind the
// start of the data area and later.
func (s *imageSink) place(t *erofs.Tree, owners []owner, gap int64) {
	var ext []erofs.Extent
	for _, o := range owners {
		f := &s.files[o.file]
		ext = extentsOf(ext[:0], s.runs[f.run:f.run+f.runs], f.size, gap+f.addr)
		t.SetExtents(o.inode, ext)
	}
}

// finish writes the metadata of t into the room before the data. What is left of
// the room is a hole that no file has; what is missing is made by moving the data.
func (s *imageSink) finish(t *erofs.Tree) error {
	owners := ownersIn(t)
	s.place(t, owners, 0)
	layout, err := newLayout(t)
	if err != nil {
		return err
	}
	meta, data := layout.MetaSize(), s.w.n-s.room
	gap := s.room - meta
	if data == 0 {
		s.w.n, gap = meta, 0
	}
	if gap > 0 {
		s.place(t, owners, gap)
		if layout, err = newLayout(t); err != nil {
			return err
		}
	}
	if err := s.w.finish(); err != nil {
		return err
	}
	if gap < 0 {
		if err := insertFront(s.w.f, -gap, s.w.n); err != nil {
			return fmt.Errorf("making room for metadata in the layer file: %w", err)
		}
	}
	if err := identify(layout, data+max(gap, 0)); err != nil {
		return err
	}
	if _, err := layout.WriteMeta(io.NewOffsetWriter(s.w.f, 0), data+max(gap, 0)); err != nil {
		return fmt.Errorf("writing metadata: %w", err)
	}
	return nil
}

// applyTar converts a tar to the image in f. The data of files goes to its
// final file at once, and the metadata, whose length is known only then, is
// put before it. Clients that commit a container without asking for a media type
// call an EROFS image a tar; it is taken for what it is.
func applyTar(ctx context.Context, u *unpacking) (ocispec.Descriptor, error) {
	in, err := openInput(ctx, u.src, nil)
	return u.through(in.close, func() (ocispec.Descriptor, error) {
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		return convertTar(ctx, u, in)
	})
}

func convertTar(ctx context.Context, u *unpacking, in *input) (ocispec.Descriptor, error) {
	f := u.f
	if in.isImage() {
		n, err := unpackImage(f, in)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		return ocispec.Descriptor{MediaType: chunk.MediaTypeLayer, Digest: in.digest(), Size: n}, nil
	}
	room := roomFor(u.desc.Size)
	sink := &imageSink{w: sparseWriter{f: f, n: room, started: room}, room: room, buf: make([]byte, scanLen)}
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
	if err := sink.finish(tree); err != nil {
		return ocispec.Descriptor{}, err
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: in.digest(), Size: in.n}, nil
}
