package differ

import (
	"bufio"
	"fmt"
	"os"

	"github.com/cespare/xxhash/v2"
)

// spool is an unnamed file that is written once from front to back and then
// read at random. Nothing of it is left when the process ends, however it ends.
type spool struct {
	f   *os.File
	w   *bufio.Writer
	dir string
	n   int64
}

func newSpool(dir string) (*spool, error) {
	f, err := openUnnamed(dir)
	if err != nil {
		return nil, fmt.Errorf("creating spool file in %s: %w", dir, err)
	}
	return &spool{f: f, w: bufio.NewWriterSize(f, 256<<10), dir: dir}, nil
}

// Write appends p.
func (s *spool) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.n += int64(n)
	if err != nil {
		return n, fmt.Errorf("writing spool file in %s, which needs up to the size of the uncompressed layer: %w", s.dir, err)
	}
	return n, nil
}

// flush ends the writing. ReadAt sees everything only afterwards.
func (s *spool) flush() error {
	if err := s.w.Flush(); err != nil {
		return fmt.Errorf("writing spool file in %s, which needs up to the size of the uncompressed layer: %w", s.dir, err)
	}
	return nil
}

// readFull fills p from off, and holds the xxHash64 against it that was taken
// when it was written.
func (s *spool) readFull(p []byte, off int64, check uint64) error {
	if _, err := s.f.ReadAt(p, off); err != nil {
		return fmt.Errorf("reading spool file in %s: %w", s.dir, err)
	}
	if xxhash.Sum64(p) != check {
		return fmt.Errorf("spool file in %s gave other bytes than were written, check the disk", s.dir)
	}
	return nil
}

func (s *spool) Close() error { return s.f.Close() }
