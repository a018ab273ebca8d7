package differ

import (
	"context"
	"hash"
	"hash/crc32"
)

// checks are CRC-32 of what was read of a tar: of all that tells what is in it, which
// is headers and holes; of the data of each record that is a small file; and of each
// chunk of a big one.
type checks struct {
	headers        uint32
	smalls, chunks []uint32
}

// agree tells whether all that c has is the same in all. Data of a file that a later
// entry replaced is only there.
func (c *checks) agree(all *checks) bool {
	same := func(a, b []uint32) bool {
		for k := range a {
			if a[k] != 0 && a[k] != b[k] {
				return false
			}
		}
		return true
	}
	return c.headers == all.headers && same(c.smalls, all.smalls) && same(c.chunks, all.chunks)
}

// sweep reads a tar once from front to back and digests all of it. It checks what
// others read of it here and there.
type sweep struct {
	window
	ctx context.Context // of the one pass that it is
	sum hash.Hash
	checks
}

// record goes on to the header behind a record's data.
func (s *sweep) record(c *catalog, rec *record) error {
	if err := s.scanned(rec.off); err != nil {
		return err
	}
	var small uint32
	var err error
	if rec.big {
		err = s.big(c, rec)
	} else {
		small, err = s.through(rec.off+rec.size, 0)
	}
	if err != nil {
		return err
	}
	s.smalls = append(s.smalls, small)
	_, err = s.through(min(alignTar(rec.off+rec.size), s.size), 0)
	return err
}

func (s *sweep) big(c *catalog, rec *record) error {
	for k := range c.chunks(rec) {
		var crc uint32
		if err := c.ranges(rec, k, func(off, n int64) error {
			err := s.scanned(rec.off + off)
			if err == nil {
				crc, err = s.through(rec.off+off+n, crc)
			}
			return err
		}); err != nil {
			return err
		}
		s.chunks = append(s.chunks, crc)
	}
	return s.scanned(rec.off + rec.size)
}

// scanned goes on to an address over what tells what is in the tar.
func (s *sweep) scanned(to int64) (err error) {
	s.headers, err = s.through(to, s.headers)
	return err
}

// through goes on to an address and updates crc.
func (s *sweep) through(to int64, crc uint32) (uint32, error) {
	for s.at < to {
		fresh := s.at == s.from+int64(s.n)
		p, err := s.ahead()
		if err != nil {
			return 0, readError("digesting the layer", err)
		}
		if fresh {
			if s.ctx.Err() != nil {
				return 0, context.Cause(s.ctx)
			}
			s.sum.Write(p)
		}
		p = p[:min(int64(len(p)), to-s.at)]
		crc = crc32.Update(crc, crc32.IEEETable, p)
		s.at += int64(len(p))
	}
	return crc, nil
}

// tarBlock is the unit of a tar.
const tarBlock = 512

// alignTar rounds n up to the next multiple of it.
func alignTar(n int64) int64 { return (n + tarBlock - 1) &^ (tarBlock - 1) }
