package erofs

import "bytes"

// readInode reads the inode nid with everything that hangs on it but the names
// in a directory, and appends it to the tree.
func (s *parser) readInode(nid uint32) (Inode, error) {
	off := s.address(nid)
	d, err := s.rawInode(off)
	if err != nil {
		return 0, err
	}
	t := s.tree
	if uint64(len(t.inodes)) >= s.super.Inodes {
		return 0, refuse(RuleCount, off, "more inodes than the %d that the superblock announces", s.super.Inodes)
	}
	n := inode{
		mode: d.Mode, uid: d.UID, gid: d.GID, nlink: d.Nlink,
		mtime: d.Mtime, nsec: d.MtimeNsec,
	}
	if !d.extended() {
		n.mtime, n.nsec = s.super.Epoch, s.super.EpochNsec
	}
	if n.nlink == 0 {
		return 0, refuse(RuleNlink, off, "a link count of 0")
	}
	size := int64(d.size())
	if err := s.readXattrs(off+size, &d, &n); err != nil {
		return 0, err
	}
	size += int64(xattrBodySize(d.XattrCount))
	if size, err = s.readContent(off, size, &d, &n); err != nil {
		return 0, err
	}
	if err := s.meta.claim(off, size, false); err != nil {
		return 0, err
	}
	i := Inode(len(t.inodes))
	t.inodes, s.nids = grow(t.inodes, n, s.super.Inodes), grow(s.nids, nid, s.super.Inodes)
	if n.nlink > 1 && n.mode&modeType != modeDir {
		s.names[nid], s.seen[i] = i, 1
	}
	return i, nil
}

// grow appends v. The array doubles, but not past limit, so that what was read
// pays for what is allocated and little is left over.
func grow[T any](a []T, v T, limit uint64) []T {
	if len(a) < cap(a) {
		return append(a, v)
	}
	b := make([]T, len(a), min(uint64(max(2*len(a), 64)), max(limit, uint64(len(a))+1)))
	copy(b, a)
	return append(b, v)
}

// rawInode decodes the inode at off and checks what is true of all types.
func (s *parser) rawInode(off int64) (diskInode, error) {
	b, err := s.meta.view(off, compactSize)
	if err != nil {
		return diskInode{}, err
	}
	if b[0]&formatExtended != 0 {
		if b, err = s.meta.view(off, extendedSize); err != nil {
			return diskInode{}, err
		}
	}
	d := getInode(b)
	var again [extendedSize]byte
	d.put(again[:])
	if k := mismatch(b, again[:d.size()]); k >= 0 {
		return d, refuse(RuleInode, off+int64(k), "a reserved byte of an inode is not zero")
	}
	switch {
	case d.Format&^formatKnown != 0:
		return d, refuse(RuleInode, off, "inode format %#x has unknown bits", d.Format)
	case fileType(d.Mode) == 0:
		return d, refuse(RuleInode, off, "mode %#o is of no type", d.Mode)
	case !d.extended() && off/s.block != (off+compactSize-1)/s.block:
		return d, refuse(RuleInode, off, "a compact inode crosses a block boundary")
	case d.CompactTime != 0:
		return d, refuse(RuleInode, off, "a compact inode with a time of its own, which kernels before 6.15 ignore")
	case d.MtimeNsec >= 1e9:
		return d, refuse(RuleInode, off, "a modification time with %d ns", d.MtimeNsec)
	case d.XattrCount == 1:
		return d, refuse(RuleXattr, off, "an attribute body without attributes")
	case d.Size > uint64(s.policy.MaxFileSize):
		return d, refuse(RuleLimit, off, "a size of %d bytes, %d are allowed", d.Size, s.policy.MaxFileSize)
	}
	return d, nil
}

// readContent reads what follows the attributes: a chunk map, or the inline
// tail of a directory or a link. size is the length of the inode so far; with
// the content it is returned.
func (s *parser) readContent(off, size int64, d *diskInode, n *inode) (int64, error) {
	layout := d.layout()
	switch n.mode & modeType {
	case modeReg:
		n.size = int64(d.Size)
		switch {
		case layout == layoutChunks && n.size > 0:
			return s.readChunks(off, size, d, n)
		case layout == layoutPlain:
			return size, s.readPlain(off, d, n)
		}
		return 0, refuse(RuleLayout, off, "layout %d of a regular file of %d bytes", layout, d.Size)
	case modeDir:
		return s.readDirContent(off, size, d, n)
	case modeLink:
		return s.readLink(off, size, d, n)
	}
	if layout != layoutPlain {
		return 0, refuse(RuleLayout, off, "layout %d of a special file", layout)
	}
	if n.mode&modeType == modeChar || n.mode&modeType == modeBlock {
		n.rdev = d.U
	} else if d.U != 0 && d.U != nullBlock {
		return 0, refuse(RuleInode, off, "a pipe or socket with a device number or an address")
	}
	if d.Size != 0 {
		if n.mode&modeType == modeChar && n.rdev == 0 {
			return 0, refuse(RuleWhiteout, off, "a whiteout of %d bytes", d.Size)
		}
		return 0, refuse(RuleInode, off, "a special file of %d bytes", d.Size)
	}
	return size, nil
}

// tail finds the inline tail of a directory or link: its place and length. The
// kernel wants it in one block.
func (s *parser) tail(off, size int64, d *diskInode) (at, n int64, err error) {
	at, n = off+size, int64(d.Size)&(s.block-1)
	if n == 0 {
		return 0, 0, refuse(RuleLayout, off, "an inline tail without bytes")
	}
	if at/s.block != (at+n-1)/s.block {
		return 0, 0, refuse(RuleLayout, off, "an inline tail that crosses a block boundary")
	}
	return at, n, nil
}

// readDirContent checks where a directory's blocks are. They are read later,
// from the place that first, count and size remember until then: the first
// block, whether there is an inline tail, and the size.
func (s *parser) readDirContent(off, size int64, d *diskInode, n *inode) (int64, error) {
	n.size = int64(d.Size)
	whole := alignUp(n.size, s.block) / s.block
	switch d.layout() {
	case layoutPlain:
	case layoutInline:
		_, tail, err := s.tail(off, size, d)
		if err != nil {
			return 0, err
		}
		n.count = uint32(size) // where the tail is, relative to the inode
		size += tail
		whole--
	default:
		return 0, refuse(RuleLayout, off, "layout %d of a directory", d.layout())
	}
	if n.size == 0 {
		return 0, refuse(RuleDirectory, off, "a directory without entries")
	}
	n.first = d.U
	return size, s.blocksInside(off, d.U, whole)
}

// blocksInside checks that count blocks from first on are in the image.
func (s *parser) blocksInside(off int64, first uint32, count int64) error {
	if count > 0 && (count > int64(s.super.Blocks) || int64(first) > int64(s.super.Blocks)-count) {
		return refuse(RuleBounds, off, "%d blocks from block %d on, the image has %d", count, first, s.super.Blocks)
	}
	return nil
}

func (s *parser) readLink(off, size int64, d *diskInode, n *inode) (int64, error) {
	n.size = int64(d.Size)
	if n.size == 0 || n.size > maxTarget {
		return 0, refuse(RuleSymlink, off, "a target of %d bytes, 1 to %d are allowed", n.size, maxTarget)
	}
	at := int64(d.U) * s.block
	length := size
	switch d.layout() {
	case layoutPlain:
		if err := s.blocksInside(off, d.U, alignUp(n.size, s.block)/s.block); err != nil {
			return 0, err
		}
		if err := s.meta.claim(at, alignUp(n.size, s.block), false); err != nil {
			return 0, err
		}
	case layoutInline:
		var tail int64
		var err error
		if at, tail, err = s.tail(off, size, d); err != nil {
			return 0, err
		}
		if tail != n.size {
			return 0, refuse(RuleLayout, off, "a target that is in part inline")
		}
		length += tail
	default:
		return 0, refuse(RuleLayout, off, "layout %d of a symbolic link", d.layout())
	}
	target, err := s.meta.view(at, n.size)
	if err != nil {
		return 0, err
	}
	if bytes.IndexByte(target, 0) >= 0 {
		return 0, refuse(RuleSymlink, off, "a target with a NUL byte")
	}
	n.count = uint32(n.size)
	n.first, err = s.toArena(target)
	return length, err
}
