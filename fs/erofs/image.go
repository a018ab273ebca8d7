package erofs

import (
	"errors"
	"fmt"
	"io"
	"sync"
)

// ErrChanged is wrapped by errors of Image: there is no such inode, or the bytes
// are no longer those that were parsed.
var ErrChanged = errors.New("not in the EROFS image that was parsed")

// Nid is the number of an inode on disk: it says where in the image the inode is.
// The same image has the same numbers whoever reads it.
type Nid uint32

// Image reads inodes of a parsed image one at a time from its bytes, as the kernel
// does, and keeps nothing of them. A Tree takes memory for all inodes.
//
// Its methods check what they must to stay inside the metadata, and no more:
// everything else was checked by Parse. So the bytes must not change meanwhile;
// where they do, there are wrong answers and ErrChanged, and never a panic. It is
// safe for concurrent use as far as its reader is.
type Image struct {
	r      io.ReaderAt
	super  superblock
	block  int64
	ranges []Range
}

// Image returns the image that was parsed, whose bytes are in r. It does not hold
// the Tree.
func (p *Parsed) Image(r io.ReaderAt) *Image {
	return &Image{r: r, super: p.super, block: 1 << p.BlockBits, ranges: p.MetaExtents}
}

// Root is the number of the root directory.
func (m *Image) Root() Nid { return Nid(m.super.RootNid) }

// Inodes is how many inodes there are.
func (m *Image) Inodes() uint64 { return m.super.Inodes }

// Stat is what stat(2) reports of an inode.
type Stat struct {
	// Attr holds as in a Tree, but Size is that of the entries in a directory.
	Attr
	// Nlink is the link count.
	Nlink uint32
	// Blocks is how many 512-byte blocks of a regular file are not holes; 0 for
	// all other types.
	Blocks uint64
}

// Stat returns the attributes of an inode.
func (m *Image) Stat(nid Nid) (Stat, error) {
	s := m.open(lookAhead)
	defer s.close()
	return s.stat(nid)
}

// Target returns the target of a symbolic link, nil for another inode.
func (m *Image) Target(nid Nid) ([]byte, error) {
	s := m.open(lookAhead)
	defer s.close()
	d, off, err := s.inode(nid)
	if err != nil || d.Mode&modeType != modeLink {
		return nil, err
	}
	if d.Size > maxTarget {
		return nil, changed(off, "a link of %d bytes", d.Size)
	}
	at := int64(d.U) * m.block
	if d.layout() == layoutInline {
		at = off + d.head()
	}
	b, err := s.view(at, int64(d.Size))
	return append([]byte(nil), b...), err
}

// head is the length of an inode with its attributes: where its tail or its chunk
// map, but for alignment, begins.
func (n *diskInode) head() int64 { return int64(n.size() + xattrBodySize(n.XattrCount)) }

// How many bytes are read where an inode begins: it, its attributes and its tail
// or map in most cases, or all that a block has room for.
const (
	lookAhead = 256
	listAhead = 4096
)

// maxSize is more than Parse allows, and little enough to count with.
const maxSize = 1 << 50

// keepLong is the longest buffer of a question that is kept for the next one.
const keepLong = 16 << 10

// question has the memory that answering one request takes.
type question struct {
	m     *Image
	win   [4096]byte // bytes [at, at+n) of the image
	at, n int64
	ahead int64
	dirs  dirView
	block [4096]byte // a block of a directory
	long  []byte     // what is longer than win
	body  []byte     // of extended attributes
}

var questions = sync.Pool{New: func() any { return new(question) }}

func (m *Image) open(ahead int64) *question {
	s, _ := questions.Get().(*question) // what New makes
	s.m, s.n, s.ahead = m, 0, ahead
	return s
}

func (s *question) close() {
	s.m = nil
	if cap(s.long) > keepLong {
		s.long = nil
	}
	if cap(s.body) > keepLong {
		s.body = nil
	}
	questions.Put(s)
}

func changed(off int64, format string, args ...any) error {
	return fmt.Errorf("byte %d: %s: %w", off, fmt.Sprintf(format, args...), ErrChanged)
}

// view returns bytes [off, off+n), which must be metadata. They hold until the
// next call.
func (s *question) view(off, n int64) ([]byte, error) {
	if off >= s.at && off+n <= s.at+s.n {
		return s.win[off-s.at:][:n], nil
	}
	r, ok := overlapping(s.m.ranges, off, 1)
	if !ok || n < 0 || n > r.Off+r.Len-off {
		return nil, changed(off, "%d bytes of metadata", n)
	}
	b := s.win[:]
	if n > int64(len(b)) {
		if int64(cap(s.long)) < n {
			s.long = make([]byte, n)
		}
		b = s.long[:n]
		s.n = 0
	} else {
		s.at, s.n = off, min(max(n, s.ahead), int64(len(b)), r.Off+r.Len-off)
		b = b[:s.n]
	}
	if got, err := s.m.r.ReadAt(b, off); got < len(b) {
		s.n = 0
		if err == nil || errors.Is(err, io.EOF) {
			return nil, changed(off, "the image ends")
		}
		return nil, fmt.Errorf("reading metadata at byte %d: %w", off, err)
	}
	return b[:n], nil
}

// inode reads the inode nid, which is at byte off.
func (s *question) inode(nid Nid) (d diskInode, off int64, err error) {
	off = int64(s.m.super.MetaBlock)*s.m.block + int64(nid)<<nidShift
	b, err := s.view(off, compactSize)
	if err != nil {
		return d, off, err
	}
	if b[0]&formatExtended != 0 {
		if b, err = s.view(off, extendedSize); err != nil {
			return d, off, err
		}
	}
	d = getInode(b)
	if fileType(d.Mode) == 0 || d.XattrCount == 1 || d.Size > maxSize {
		return d, off, changed(off, "no inode")
	}
	if !d.extended() {
		d.Mtime, d.MtimeNsec = s.m.super.Epoch, s.m.super.EpochNsec
	}
	return d, off, nil
}

func (s *question) stat(nid Nid) (Stat, error) {
	d, off, err := s.inode(nid)
	if err != nil {
		return Stat{}, err
	}
	st := Stat{Nlink: d.Nlink, Attr: Attr{
		Mode: d.Mode, UID: d.UID, GID: d.GID, Mtime: d.Mtime, MtimeNsec: d.MtimeNsec, Size: int64(d.Size),
	}}
	switch d.Mode & modeType {
	case modeChar, modeBlock:
		st.Rdev = d.U
	case modeReg:
		f, err := s.file(&d, off)
		if err != nil {
			return Stat{}, err
		}
		for at := int64(0); at < f.Size; {
			e, err := s.extent(&f, at, f.Size-at)
			if err != nil {
				return Stat{}, err
			}
			if e.Addr != HoleAddr {
				st.Blocks += uint64(e.Len+511) / 512
			}
			at = e.Off + e.Len
		}
	}
	return st, nil
}
