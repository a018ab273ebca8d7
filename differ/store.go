package differ

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/cespare/xxhash/v2"
)

// store takes the data of all files in the first pass. It keeps nothing of it in
// memory: 64 bytes for a chunk and as many for a file. Both have a checksum, for what
// comes back from the disk gets digests that everybody believes; it need not be
// one that withstands malice, and a tenth of the time of SHA-256 matters.
type store struct {
	catalog
	cfg    Config
	small  *spool
	big    *spool
	pool   *pool
	cur    *job      // chunk that is being filled
	frames []spooled // written by the pool until finish
	cut    int       // chunks submitted
	buf    []byte
	check  xxhash.Digest
}

// spooled is the stored form of one chunk of a big file.
type spooled struct {
	off    int64 // in the spool of frames
	stored int
	data   int    // image data, padded to the block size
	check  uint64 // xxHash64 of the stored form
	sum    [sha256.Size]byte
}

func newStore(ctx context.Context, cfg Config) (*store, error) {
	small, err := newSpool(cfg.SpoolDir)
	if err != nil {
		return nil, err
	}
	big, err := newSpool(cfg.SpoolDir)
	if err != nil {
		return nil, errors.Join(err, small.Close())
	}
	s := &store{catalog: catalog{chunkSize: cfg.ChunkSize}, cfg: cfg, small: small, big: big, buf: make([]byte, scanLen)}
	s.pool = newPool(ctx, cfg, s.encode, s.keep)
	return s, nil
}

// put takes the size bytes of a file from r and returns the number of its
// record. size is not 0.
func (s *store) put(ctx context.Context, r io.Reader, size int64) (int, error) {
	rec := record{size: size, big: s.isBig(size)}
	var err error
	if rec.big {
		err = s.putBig(ctx, &rec, r)
	} else {
		rec.off = s.small.n
		rec.check, err = s.putSmall(r, size)
	}
	s.records = append(s.records, rec)
	return len(s.records) - 1, err
}

func (s *store) putSmall(r io.Reader, size int64) (check uint64, err error) {
	s.check.Reset()
	for size > 0 {
		p := s.buf[:min(int64(len(s.buf)), size)]
		if _, err := io.ReadFull(r, p); err != nil {
			return 0, fileReadError(err)
		}
		if _, err := s.small.Write(p); err != nil {
			return 0, err
		}
		s.check.Write(p) //nolint:errcheck // never fails
		size -= int64(len(p))
	}
	return s.check.Sum64(), nil
}

// putBig cuts what a file stores into chunks. The cuts depend on nothing but the
// file, so that the same file gives the same chunks in every image.
func (s *store) putBig(ctx context.Context, rec *record, r io.Reader) error {
	rec.run, rec.frame = len(s.runs), s.cut
	var err error
	if s.runs, err = scanRuns(ctx, r, rec.size, s.buf, s.runs, s.fill); err != nil {
		return err
	}
	if err := s.cutTail(); err != nil {
		return err
	}
	s.endRuns(rec)
	return nil
}

func (s *store) fill(p []byte) error {
	for len(p) > 0 {
		if s.cur == nil {
			j, err := s.pool.get()
			if err != nil {
				return err
			}
			s.cur = j
		}
		n := min(len(p), int(s.cfg.ChunkSize)-len(s.cur.data))
		s.cur.data = append(s.cur.data, p[:n]...)
		p = p[n:]
		if len(s.cur.data) == int(s.cfg.ChunkSize) {
			s.submit()
		}
	}
	return nil
}

// cutTail ends the last chunk of a file, padded to the block size.
func (s *store) cutTail() error {
	if s.cur == nil {
		return nil
	}
	pad := int(alignUp(int64(len(s.cur.data)))) - len(s.cur.data)
	s.cur.data = append(s.cur.data, zeros[:pad]...)
	s.submit()
	return nil
}

func (s *store) submit() {
	s.pool.submit(s.cur)
	s.cur = nil
	s.cut++
}

// encode runs on the pool's workers.
func (s *store) encode(c *codec, j *job) error {
	return c.pack(j)
}

// keep runs on the pool's sink.
func (s *store) keep(j *job) error {
	s.frames = append(s.frames, spooled{off: s.big.n, stored: len(j.store), data: len(j.data), check: xxhash.Sum64(j.store), sum: j.sum})
	_, err := s.big.Write(j.store)
	return err
}

// chunk implements dataSource: it reads back what was compressed.
func (s *store) chunk(c *codec, j *job, rec *record, k int) error {
	f := &s.frames[rec.frame+k]
	j.store = resize(j.store, f.stored)
	if err := s.big.readFull(j.store, f.off, f.check); err != nil {
		return err
	}
	j.sum = f.sum
	if err := c.unpack(j); err != nil {
		return err
	}
	if len(j.data) != f.data {
		return fmt.Errorf("spooled chunk holds %d bytes instead of %d", len(j.data), f.data)
	}
	return nil
}

// smallFile implements dataSource.
func (s *store) smallFile(p []byte, rec int) error {
	return s.small.readFull(p, s.records[rec].off, s.records[rec].check)
}

// finish ends the first pass and makes the spools readable. It must be called
// exactly once, also after an error, and returns the pool's error first.
func (s *store) finish() error {
	if err := s.pool.wait(); err != nil {
		return err
	}
	if err := s.small.flush(); err != nil {
		return err
	}
	return s.big.flush()
}

func (s *store) close() error { return errors.Join(s.small.Close(), s.big.Close()) }
