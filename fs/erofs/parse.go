package erofs

import (
	"fmt"
	"io"
	"math"
)

// Range is a range of bytes of an image.
type Range struct {
	// Off is the first byte, Len the number of bytes.
	Off, Len int64
}

// Parsed is an image that passed.
type Parsed struct {
	// Tree is the file system. Its extents' addresses count from the start of
	// their device; the image itself is device 0.
	Tree *Tree
	// Compat and Incompat are the superblock's feature bits.
	Compat, Incompat uint32
	// BlockBits is log2 of the block size.
	BlockBits uint8
	// UUID is the file system's, Volume its name with trailing NULs.
	UUID, Volume [16]byte
	// BuildTime is in seconds since 1970.
	BuildTime int64
	// Inodes is the number of inodes, Blocks that of the primary device's blocks.
	Inodes, Blocks uint64
	// Devices are the extra devices; Extent.Device 1 is the first.
	Devices []Device
	// MetaExtents are all blocks that the kernel can read as metadata through
	// this superblock, ascending, not adjacent. All of it must be local and
	// unchanged before a mount.
	MetaExtents []Range

	super superblock
}

// Parse reads all metadata of the image in r and checks it against p and the
// rules of this package's documentation. It reads in pieces of 256 KiB, mostly
// ascending. An error is a *RefusedError, or what r returned.
func Parse(r io.ReaderAt, p Policy) (*Parsed, error) {
	s := &parser{policy: p, meta: newMetaReader(r, p), tree: &Tree{}}
	if err := s.run(); err != nil {
		return nil, fmt.Errorf("parsing an EROFS image: %w", err)
	}
	return &Parsed{
		Tree: s.tree, Compat: s.super.Compat, Incompat: s.super.Incompat, BlockBits: s.super.BlockBits,
		UUID: s.super.UUID, Volume: s.super.Volume, BuildTime: s.super.Epoch + int64(s.super.BuildTime),
		Inodes: s.super.Inodes, Blocks: uint64(s.super.Blocks),
		Devices: s.devices, MetaExtents: s.ranges, super: s.super,
	}, nil
}

// parser walks the tree breadth first. An inode gets its number when its first
// name is read, so the tree's own inode array is the queue of directories to
// visit: nothing recurses, and every directory is visited once because a
// second name for one is refused.
type parser struct {
	policy  Policy
	meta    *metaReader
	super   superblock
	block   int64
	devices []Device

	tree  *Tree
	nids  []uint32          // by Inode
	names map[uint32]Inode  // inodes with several names, by nid
	seen  map[Inode]uint32  // how many names of these were read
	dirs  uint32            // subdirectories of the directory being read
	buf   []byte            // the directory block being read
	xbuf  []byte            // the xattr body being read
	label map[string]uint32 // arena offsets of xattr names
	once  map[uint32]xattr  // shared xattrs by id

	ranges []Range
}

func (s *parser) run() error {
	if err := s.readSuper(); err != nil {
		return err
	}
	s.names, s.seen = map[uint32]Inode{}, map[Inode]uint32{}
	s.label, s.once = map[string]uint32{}, map[uint32]xattr{}
	s.buf = make([]byte, s.block)
	root := uint32(s.super.RootNid)
	if _, err := s.readInode(root); err != nil {
		return err
	}
	if s.tree.inodes[RootInode].mode&modeType != modeDir {
		return refuse(RuleType, s.address(root), "the root is not a directory")
	}
	if err := s.walk(); err != nil {
		return err
	}
	if n := uint64(len(s.tree.inodes)); n != s.super.Inodes {
		return refuse(RuleCount, superOffset, "the superblock announces %d inodes, the directories lead to %d", s.super.Inodes, n)
	}
	for i, n := range s.seen {
		if want := s.tree.inodes[i].nlink; n != want {
			return refuse(RuleNlink, s.address(s.nids[i]), "a link count of %d and %d names", want, n)
		}
	}
	var err error
	if s.ranges, err = s.meta.ranges(s.block); err != nil {
		return err
	}
	return s.checkPlacement()
}

// walk reads the directories in the order in which they were found. depth
// counts the generations.
func (s *parser) walk() error {
	depth, generation := 0, 1
	for k := 0; k < len(s.tree.inodes); k++ {
		if k == generation {
			depth, generation = depth+1, len(s.tree.inodes)
		}
		if s.tree.inodes[k].mode&modeType != modeDir {
			continue
		}
		if depth > s.policy.MaxDepth {
			return refuse(RuleLimit, s.address(s.nids[k]), "directories nested more than %d deep", s.policy.MaxDepth)
		}
		if err := s.readDir(Inode(k)); err != nil {
			return err
		}
	}
	return nil
}

// address is where the inode nid is in the image.
func (s *parser) address(nid uint32) int64 {
	return int64(s.super.MetaBlock)*s.block + int64(nid)<<nidShift
}

// toArena copies b into the tree's arena.
func (s *parser) toArena(b []byte) (uint32, error) {
	t := s.tree
	off := len(t.arena)
	if off+len(b) > math.MaxUint32 {
		return 0, refuse(RuleLimit, 0, "more than 4 GiB of names, link targets and attributes")
	}
	if cap(t.arena)-off < len(b) {
		t.arena = append(make([]byte, 0, 2*off+len(b)+4096), t.arena...)
	}
	t.arena = append(t.arena, b...)
	return uint32(off), nil
}

// checkPlacement holds file data on the primary device out of metadata.
func (s *parser) checkPlacement() error {
	t := s.tree
	for k := range t.inodes {
		n := &t.inodes[k]
		if n.mode&modeType != modeReg {
			continue
		}
		for _, e := range t.exts[n.first : n.first+n.count] {
			if e.Device != 0 || e.Addr == HoleAddr {
				continue
			}
			if r, hit := overlapping(s.ranges, e.Addr, alignUp(e.Len, s.block)); hit {
				return refuse(RuleExtent, s.address(s.nids[k]), "file data at [%d, +%d) in the metadata at [%d, +%d)", e.Addr, e.Len, r.Off, r.Len)
			}
		}
	}
	return nil
}
