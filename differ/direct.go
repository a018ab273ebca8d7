package differ

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"strings"
	"sync"

	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
)

// ConvertAt is Convert for a layer of size bytes that can be read at random, as a
// file can; ReadAt is called on several goroutines. Of a plain tar nothing waits in
// SpoolDir: its headers are read first, and the data of files where it is when its
// turn comes. The result is the same. Progress follows what has been written then.
//
// A tar whose bytes change meanwhile gives an error that wraps ErrChanged.
func ConvertAt(ctx context.Context, src io.ReaderAt, size int64, dst io.Writer, cfg Config) (Result, error) {
	plain, err := IsPlain(src)
	if err != nil {
		return Result{}, err
	}
	if plain {
		res, err := convertDirect(ctx, src, size, dst, cfg)
		if !errors.Is(err, errScattered) {
			return res, err
		}
	}
	return Convert(ctx, io.NewSectionReader(src, 0, size), dst, cfg)
}

// IsPlain says whether Convert would read the layer in src as it is, because it is
// compressed in no way that Convert knows.
func IsPlain(src io.ReaderAt) (bool, error) {
	magic := make([]byte, magicLen)
	n, err := src.ReadAt(magic, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, readError("reading layer", err)
	}
	return compressionOf(magic[:n]) == asIs, nil
}

// ErrChanged reports that a tar changed while it was converted, or that the disk
// gave other bytes the second time. It is wrapped; the fix is to convert again.
var ErrChanged = errors.New("layer changed while it was read")

// errScattered reports a tar with a member whose data is not in one piece, or does not
// become that of a file.
var errScattered = errors.New("tar cannot be converted where it is")

// direct leaves the data of files in the tar. Headers are read ahead of everything,
// while one goroutine digests the whole tar in order behind them; then the pool reads
// the data in the order of the image. What they have read must be the same, for the
// digest of the tar says nothing of what the others saw.
type direct struct {
	catalog
	src    io.ReaderAt
	size   int64
	head   *window
	buf    []byte
	found  []run // of the file that is looked at
	frames int   // chunks of big files

	mu      sync.Mutex // for the catalog, until scanned
	more    sync.Cond
	scanned bool

	digested, converted checks
}

func convertDirect(ctx context.Context, src io.ReaderAt, size int64, dst io.Writer, cfg Config) (Result, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return Result{}, err
	}
	d := &direct{
		catalog: catalog{chunkSize: cfg.ChunkSize}, src: src, size: size,
		head: &window{src: src, size: size, buf: make([]byte, headLen)},
		buf:  make([]byte, scanLen),
	}
	d.more.L = &d.mu
	progress := cfg.Progress
	if progress == nil {
		progress = func(int64) {}
	}
	var res Result
	var sum hash.Hash
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		sum, err = d.digest(ctx)
		return err
	})
	g.Go(func() (err error) {
		ing := newIngest(d, cfg.Implied)
		if err := d.scan(ctx, ing); err != nil {
			return err
		}
		res, err = writeBlob(ctx, ing, d, dst, cfg, func(done, of int64) { // so that it ends where the tar does
			progress(int64(float64(size) * float64(done) / float64(of)))
		})
		return err
	})
	if err := g.Wait(); err != nil {
		return Result{}, err
	}
	if !d.converted.agree(&d.digested) {
		return Result{}, fmt.Errorf("converting a tar of %d bytes: %w", size, ErrChanged)
	}
	progress(size)
	res.TarDiffID, res.TarSize = digest.NewDigest(digest.SHA256, sum), size
	return res, nil
}

// scan reads all headers.
func (d *direct) scan(ctx context.Context, ing *ingest) error {
	defer d.publish(func() { d.scanned = true })
	ing.each = func(hdr *tar.Header) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return refuseSparse(hdr)
	}
	if err := ing.run(ctx, d.head); err != nil {
		return err
	}
	if d.head.strayed {
		return errScattered
	}
	d.converted = checks{d.head.crc, make([]uint32, len(d.records)), make([]uint32, d.frames)}
	return nil
}

// publish changes the catalog and wakes who waits for it.
func (d *direct) publish(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
	d.more.Signal()
}

// refuseSparse looks at an entry of which only the header has been read. The data of
// sparse members is taken apart by archive/tar alone.
func refuseSparse(hdr *tar.Header) error {
	if hdr.Typeflag == tar.TypeGNUSparse {
		return errScattered
	}
	for k := range hdr.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return errScattered
		}
	}
	return nil
}

// put implements dataSink. The data begins where the headers have been read to.
func (d *direct) put(ctx context.Context, _ io.Reader, size int64) (int, error) {
	rec := record{size: size, off: d.head.at, stored: size, big: d.isBig(size)}
	if size > d.size-rec.off {
		return 0, fileReadError(io.ErrUnexpectedEOF)
	}
	if rec.big {
		if err := d.findRuns(ctx, &rec); err != nil {
			return 0, err
		}
	}
	d.head.next = alignTar(rec.off + size)
	d.publish(func() {
		if rec.big {
			rec.run, rec.frame, rec.stored = len(d.runs), d.frames, 0
			d.runs = append(d.runs, d.found...)
			d.endRuns(&rec)
			d.frames += d.chunks(&rec)
		}
		d.records = append(d.records, rec)
	})
	return len(d.records) - 1, nil
}

// findRuns does what scanRuns does, and reads of each unit no more than tells
// whether it is a hole.
func (d *direct) findRuns(ctx context.Context, rec *record) error {
	unit := holeUnit(rec.size)
	d.found = d.found[:0]
	for off := int64(0); off < rec.size; off += unit {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n := min(unit, rec.size-off)
		hole, err := d.isZero(rec.off+off, n)
		if err != nil {
			return err
		}
		if hole {
			d.head.noteZeros(n)
		} else {
			d.found = appendRun(d.found, 0, off, n)
		}
	}
	return nil
}

func (d *direct) isZero(off, n int64) (bool, error) {
	for step := int64(blockSize); n > 0; step = scanLen {
		p := d.buf[:min(step, n)]
		if err := readFullAt(d.src, p, off); err != nil {
			return false, fileReadError(err)
		}
		if !bytes.Equal(p, zeros[:len(p)]) {
			return false, nil
		}
		off += int64(len(p))
		n -= int64(len(p))
	}
	return true, nil
}

// chunk implements dataSource.
func (d *direct) chunk(c *codec, j *job, rec *record, k int) error {
	n := int(d.chunkLen(rec, k))
	j.data = resize(j.data[:0], int(alignUp(int64(n))))
	clear(j.data[n:])
	p := j.data[:n]
	if err := d.ranges(rec, k, func(off, n int64) error {
		if err := readFullAt(d.src, p[:n], rec.off+off); err != nil {
			return fileReadError(err)
		}
		p = p[n:]
		return nil
	}); err != nil {
		return err
	}
	d.converted.chunks[rec.frame+k] = crc32.ChecksumIEEE(j.data[:n])
	return c.pack(j)
}

// smallFile implements dataSource.
func (d *direct) smallFile(p []byte, rec int) error {
	if err := readFullAt(d.src, p, d.records[rec].off); err != nil {
		return fileReadError(err)
	}
	d.converted.smalls[rec] = crc32.ChecksumIEEE(p)
	return nil
}

// digest reads the whole tar and returns its SHA-256.
func (d *direct) digest(ctx context.Context) (hash.Hash, error) {
	s := &sweep{window: window{src: d.src, size: d.size, buf: make([]byte, aheadLen)}, ctx: ctx, sum: sha256.New()}
	for k := 0; ; k++ {
		known, ok := d.upTo(k)
		if !ok {
			break
		}
		if err := s.record(&known, &known.records[k]); err != nil {
			return nil, err
		}
	}
	if err := s.scanned(min(d.head.at, d.size)); err != nil {
		return nil, err
	}
	d.digested = s.checks
	_, err := s.through(d.size, 0)
	return s.sum, err
}

// upTo waits until record k is known, and returns the catalog as it is then, or
// false if there is none.
func (d *direct) upTo(k int) (catalog, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for k >= len(d.records) && !d.scanned {
		d.more.Wait()
	}
	return d.catalog, k < len(d.records)
}
