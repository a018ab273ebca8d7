package erofs

import (
	"fmt"
	"io/fs"
	"math"
)

// WriteOptions are what a Tree does not say about an image.
type WriteOptions struct {
	// UUID of the file system. Equal trees, options and UUIDs make equal images.
	UUID [16]byte
	// BlockBits is log2 of the block size: 12, which 0 means too, or down to 9
	// for an image whose device is a raw tar.
	BlockBits uint8
	// BuildTime is in seconds since 1970; tools show it, the kernel does not.
	// It is stored when it is less than 2^32 seconds after the image's epoch.
	BuildTime int64
	// Devices are the extra devices. Extent.Device 1 is the first of them.
	Devices []Device
}

// Device describes one slot of the device table.
type Device struct {
	// Tag identifies the device's content, as hexadecimal digits of its digest:
	// at most 64 bytes. The kernel does not look at it.
	Tag string
	// Blocks is the device's length in blocks of the image.
	Blocks uint64
}

// Layout is the metadata of an image with every address assigned: superblock
// and device table, inodes with their xattrs, maps and tails, shared xattrs,
// directory blocks. It holds the Tree and is safe for concurrent use.
type Layout struct {
	t *Tree
	o WriteOptions

	block  int64 // block size
	inodes []placedInode
	xattrs xattrPlan

	metaBlock  uint32 // meta_blkaddr
	tableEnd   int64  // end of superblock and device table
	sharedBase int64  // start of the shared xattrs
	dirBase    int64  // start of directory and long link blocks, block aligned
	metaSize   int64
	epoch      int64
	epochNsec  uint32
	chunked    bool  // some inode is chunk-based
	mapped     int64 // chunks in all maps
}

// placedInode is what the layout decides about one inode.
type placedInode struct {
	nid    uint32
	start  uint32 // first block, relative to dirBase in directories and links; else i_u
	chunks uint32 // entries of the chunk map
	body   uint32 // xattr body
	tail   uint16 // bytes that follow the xattrs
	format uint16 // i_format
}

// maxChunkMap bounds the chunk map of one file. A file that needs more has
// extents so badly aligned that its map would be as large as an archive.
// HoleAlign says how to avoid that. maxChunkMaps bounds those of all files:
// a few bytes of an archive can describe a map of any length.
const (
	maxChunkMap  = 256 << 20
	maxChunkMaps = 1 << 30
)

// NewLayout assigns an address to all metadata of t. By then every regular
// file's extents are final, addresses included: they must cover [0, Size), and
// addresses on device 0 count from the start of the data area, which comes to be
// at MetaSize. t must not change any more.
func NewLayout(t *Tree, o WriteOptions) (*Layout, error) {
	if o.BlockBits == 0 {
		o.BlockBits = 12
	}
	if o.BlockBits < 9 || o.BlockBits > 12 {
		return nil, fmt.Errorf("laying out an EROFS image: block size 2^%d, only 2^9 to 2^12 mount everywhere: %w", o.BlockBits, fs.ErrInvalid)
	}
	l := &Layout{t: t, o: o, block: 1 << o.BlockBits, inodes: make([]placedInode, t.Len())}
	for _, step := range []func() error{l.checkDevices, l.planXattrs, l.shape, l.place, l.finish} {
		if err := step(); err != nil {
			return nil, fmt.Errorf("laying out an EROFS image: %w", err)
		}
	}
	return l, nil
}

// MetaSize is the length of the metadata in bytes, a multiple of the block
// size. The data area begins there.
func (l *Layout) MetaSize() int64 { return l.metaSize }

// BlockSize is the block size in bytes.
func (l *Layout) BlockSize() int64 { return l.block }

// SetUUID replaces the UUID that the options gave.
func (l *Layout) SetUUID(u [16]byte) { l.o.UUID = u }

func (l *Layout) checkDevices() error {
	if len(l.o.Devices) > math.MaxUint16-1 {
		return fmt.Errorf("%d devices, EROFS allows %d: %w", len(l.o.Devices), math.MaxUint16-1, fs.ErrInvalid)
	}
	for k, d := range l.o.Devices {
		switch {
		case len(d.Tag) > 64:
			return fmt.Errorf("the tag of device %d has %d bytes, 64 fit: %w", k+1, len(d.Tag), fs.ErrInvalid)
		case d.Blocks >= nullBlock:
			return fmt.Errorf("device %d has %d blocks, kernels before 7.1 read 32 bits: %w", k+1, d.Blocks, fs.ErrInvalid)
		}
	}
	l.tableEnd = superOffset + superSize + int64(len(l.o.Devices))*slotSize
	return nil
}

// shape decides form and data layout of every inode, and so its length.
func (l *Layout) shape() error {
	l.chooseEpoch()
	var dirBlocks int64
	for k := range l.t.inodes {
		n, p := &l.t.inodes[k], &l.inodes[k]
		if n.mtime != l.epoch || n.nsec != l.epochNsec || n.uid > math.MaxUint16 || n.gid > math.MaxUint16 ||
			n.nlink > math.MaxUint16 || l.contentSize(Inode(k)) > math.MaxUint32 {
			p.format = formatExtended
		}
		p.body = l.xattrs.bodyLen(l.t, n)
		p.start = nullBlock
		switch n.mode & modeType {
		case modeDir, modeLink:
			blocks := l.shapeTail(p, l.contentSize(Inode(k)), n.mode&modeType == modeLink)
			if blocks > 0 {
				p.start = uint32(dirBlocks)
			}
			if dirBlocks += blocks; dirBlocks >= nullBlock {
				return fmt.Errorf("directories of more than 2^32 blocks: %w", fs.ErrInvalid)
			}
		case modeReg:
			if err := l.shapeFile(Inode(k)); err != nil {
				return fmt.Errorf("file of %d bytes, inode %d: %w", n.size, k, err)
			}
		case modeChar, modeBlock:
			p.start = n.rdev
		default:
			p.start = 0
		}
	}
	l.dirBase = dirBlocks * l.block // its length until finish moves it
	return nil
}

// shapeTail decides where size bytes of a directory or a link go: inline as far
// as the rule allows that a tail lies in one block with its inode, a link whole
// or not at all. It returns how many blocks are left.
func (l *Layout) shapeTail(p *placedInode, size int64, whole bool) int64 {
	tail := size & (l.block - 1)
	head := int64(p.size()) + int64(p.body)
	if tail > 0 && head+tail <= l.block && (!whole || tail == size) {
		p.format |= layoutInline << formatLayoutShift
		p.tail = uint16(tail)
		return size / l.block
	}
	return (size + l.block - 1) / l.block
}

func (p *placedInode) size() int {
	if p.format&formatExtended != 0 {
		return extendedSize
	}
	return compactSize
}

// length is that of the inode with its xattrs and its tail or map.
func (p *placedInode) length() int64 {
	n := int64(p.size()) + int64(p.body)
	if p.chunks > 0 {
		return alignUp(n, chunkIndexSize) + int64(p.chunks)*chunkIndexSize
	}
	return n + int64(p.tail)
}

// contentSize is what i_size says.
func (l *Layout) contentSize(i Inode) int64 {
	if l.t.inodes[i].mode&modeType == modeDir {
		return l.dirSize(i)
	}
	return l.t.inodes[i].size
}

// chooseEpoch takes the modification time that more than half of the inodes
// have, if there is one, and else 0: only those can be compact, because kernels
// before 6.15 give every compact inode the epoch as its time. The first loop
// leaves the only value that can have a majority.
func (l *Layout) chooseEpoch() {
	votes := 0
	var sec int64
	var nsec uint32
	for k := range l.t.inodes {
		n := &l.t.inodes[k]
		switch {
		case votes == 0:
			sec, nsec, votes = n.mtime, n.nsec, 1
		case n.mtime == sec && n.nsec == nsec:
			votes++
		default:
			votes--
		}
	}
	count := 0
	for k := range l.t.inodes {
		if n := &l.t.inodes[k]; n.mtime == sec && n.nsec == nsec {
			count++
		}
	}
	if count > len(l.t.inodes)/2 && sec >= 0 {
		l.epoch, l.epochNsec = sec, nsec
	}
}

// openBlocks is how many started blocks are kept to be filled up.
const openBlocks = 8

// place gives every inode an address. What fits in one block does not cross a
// block boundary, which is more than the rules ask: a compact inode and an inline
// tail must not. Inodes without a tail fill what larger ones leave free.
func (l *Layout) place() error {
	// The block that holds the end of the device table is the first that can
	// hold inodes; nids count from its start, so that the root's fits 16 bits.
	first := (l.tableEnd - 1) &^ (l.block - 1)
	l.metaBlock = uint32(first / l.block)
	var open [openBlocks]struct{ at, end int64 }
	open[0].at, open[0].end = l.tableEnd, first+l.block
	next := first + l.block
	for k := range l.inodes {
		p := &l.inodes[k]
		need := p.length()
		at := int64(-1)
		for o := range open {
			if need <= open[o].end-open[o].at {
				at = open[o].at
				open[o].at = alignUp(at+need, 1<<nidShift)
				break
			}
		}
		if at < 0 { // a new block, or several, in place of the fullest one
			at = next
			next = alignUp(at+need, l.block)
			victim := 0
			for o := range open {
				if open[o].end-open[o].at < open[victim].end-open[victim].at {
					victim = o
				}
			}
			if rest := alignUp(at+need, 1<<nidShift); next-rest > open[victim].end-open[victim].at {
				open[victim].at, open[victim].end = rest, next
			}
		}
		nid := (at - first) >> nidShift
		if nid > math.MaxUint32 {
			return fmt.Errorf("more than 128 GiB of inodes: %w", fs.ErrInvalid)
		}
		p.nid = uint32(nid)
	}
	if l.inodes[RootInode].nid > math.MaxUint16 {
		return fmt.Errorf("the root's number is %d, 16 bits must hold it: %w", l.inodes[RootInode].nid, fs.ErrInvalid)
	}
	l.sharedBase = next
	return nil
}

// finish places what follows the inodes.
func (l *Layout) finish() error {
	end := alignUp(l.sharedBase+l.xattrs.sharedLen, l.block)
	dirs := l.dirBase
	l.dirBase = end
	l.metaSize = end + dirs
	if l.metaSize/l.block >= nullBlock {
		return fmt.Errorf("metadata of %d bytes: %w", l.metaSize, fs.ErrInvalid)
	}
	return nil
}

// address is where the inode i is in the image.
func (l *Layout) address(i Inode) int64 {
	return int64(l.metaBlock)*l.block + int64(l.inodes[i].nid)<<nidShift
}
