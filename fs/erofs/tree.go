package erofs

import "iter"

// Inode is the number of an inode inside one Tree: an index, dense from 0, and
// not the on-disk nid. The root is RootInode.
type Inode uint32

// RootInode is the inode of the root directory of every Tree.
const RootInode Inode = 0

// HoleAddr as an Extent's Addr means that the range reads as zeros and has no
// address on any device.
const HoleAddr int64 = -1

// Attr holds what stat(2) reports of an inode, without link count.
type Attr struct {
	// Mode is the Linux mode: S_IFMT type bits and the lower 12 permission bits.
	Mode uint16
	// UID and GID are 32-bit ids.
	UID, GID uint32
	// Rdev is the device number of a character or block device as the kernel's
	// new_encode_dev encodes it; 0 for all other types. A character device with
	// Rdev 0 is an overlayfs whiteout.
	Rdev uint32
	// Mtime is in seconds since 1970, MtimeNsec the nanoseconds, below 1e9.
	Mtime     int64
	MtimeNsec uint32
	// Size is the length in bytes of a regular file or of a symbolic link's
	// target; 0 for all other types.
	Size int64
}

// IsDir reports whether it is a directory.
func (a Attr) IsDir() bool { return a.Mode&modeType == modeDir }

// IsWhiteout reports whether it is a whiteout, as overlayfs has them.
func (a Attr) IsWhiteout() bool { return a.Mode&modeType == modeChar && a.Rdev == 0 }

// Extent is a run of a regular file's bytes on a device.
type Extent struct {
	// Off is the offset in the file and Len the length in bytes. Off is a
	// multiple of the block size; only the last extent's Len may not be.
	Off, Len int64
	// Device is the number of the device: 0 the primary one, 1 the first slot.
	Device uint16
	// Addr is the byte address on the device, block aligned, or HoleAddr. In a
	// Tree that was not yet laid out, addresses on device 0 count from the start
	// of the data area; in a parsed Tree from the start of the image.
	Addr int64
}

// Tree is a whole file system in flat arrays, without a Go object per inode.
// A Builder numbers inodes in the order of their first paths, depth first by
// name. It is immutable once built or parsed and then safe for concurrent
// use; SetExtents is the one exception.
type Tree struct {
	inodes []inode  // by Inode
	dents  []dirent // one run per directory, sorted by name as unsigned bytes
	exts   []Extent // one run per regular file, sorted by Off
	xattrs []xattr  // one run per inode that has any, sorted by full name
	arena  []byte   // names, link targets, xattr names and values
}

// inode is one fixed-size record. first and count address a run: of dents for
// a directory, of exts for a regular file, of arena bytes for a symbolic link.
type inode struct {
	size         int64
	mtime        int64
	nsec         uint32
	uid, gid     uint32
	rdev         uint32
	nlink        uint32
	first, count uint32
	xfirst       uint32
	xcount       uint16
	mode         uint16
	parent       Inode // directories only; the root is its own parent
}

// dirent is one name in a directory. "." and ".." are not stored.
type dirent struct {
	name  uint32 // arena offset
	len   uint8
	inode Inode
}

// xattr is one extended attribute with its full name ("user.x").
type xattr struct {
	name    uint32 // arena offset
	value   uint32 // arena offset
	nameLen uint16
	valLen  uint16
}

// Len returns the number of inodes.
func (t *Tree) Len() int { return len(t.inodes) }

// Attr returns the attributes of i.
func (t *Tree) Attr(i Inode) Attr { return t.inodes[i].attr() }

func (n *inode) attr() Attr {
	return Attr{
		Mode: n.mode, UID: n.uid, GID: n.gid, Rdev: n.rdev,
		Mtime: n.mtime, MtimeNsec: n.nsec, Size: n.size,
	}
}

// Nlink returns the link count: names of a file, 2 + subdirectories of a
// directory.
func (t *Tree) Nlink(i Inode) uint32 { return t.inodes[i].nlink }

// Parent returns the parent of a directory; the root is its own.
func (t *Tree) Parent(i Inode) Inode { return t.inodes[i].parent }

// Extents returns the extents of a regular file, which cover [0, Size) without
// gaps. The slice aliases the Tree: do not write.
func (t *Tree) Extents(i Inode) []Extent {
	n := &t.inodes[i]
	if n.mode&modeType != modeReg {
		return nil
	}
	return t.exts[n.first : n.first+n.count]
}

// SetExtents replaces the extents of the regular file i, whose size stays as it
// is. It serves writers that place file data after they know the tree: it must
// not be called after NewLayout, nor while anything else uses the Tree. The
// extents are copied.
func (t *Tree) SetExtents(i Inode, e []Extent) {
	if n := &t.inodes[i]; n.mode&modeType == modeReg {
		t.exts = setExtents(n, t.exts, e)
	}
}

// Target returns the target of a symbolic link. It aliases the Tree.
func (t *Tree) Target(i Inode) []byte {
	n := &t.inodes[i]
	if n.mode&modeType != modeLink {
		return nil
	}
	return t.arena[n.first : n.first+n.count]
}

// Children iterates over the names of a directory in name order. The name
// aliases the Tree.
func (t *Tree) Children(i Inode) iter.Seq2[[]byte, Inode] {
	return func(yield func([]byte, Inode) bool) {
		n := &t.inodes[i]
		if n.mode&modeType != modeDir {
			return
		}
		for _, d := range t.dents[n.first : n.first+n.count] {
			if !yield(t.nameOf(d), d.inode) {
				return
			}
		}
	}
}

// Walk calls fn for every name in the tree, depth first and in name order; a
// hard-linked inode comes once for each of its names. The root comes first, with
// an empty path. path is slash-separated, relative and aliases a buffer: it holds
// until fn returns. Walk ends with the first error of fn and returns it.
func (t *Tree) Walk(fn func(path []byte, i Inode) error) error {
	type level struct {
		next, last uint32 // dents
		path       int    // length of the directory's path
	}
	if err := fn(nil, RootInode); err != nil {
		return err
	}
	root := &t.inodes[RootInode]
	stack := []level{{root.first, root.first + root.count, 0}}
	var path []byte
	for len(stack) > 0 {
		top := &stack[len(stack)-1]
		if top.next == top.last {
			stack = stack[:len(stack)-1]
			continue
		}
		d := &t.dents[top.next]
		top.next++
		if path = path[:top.path]; len(path) > 0 {
			path = append(path, '/')
		}
		path = append(path, t.nameOf(*d)...)
		if err := fn(path, d.inode); err != nil {
			return err
		}
		if n := &t.inodes[d.inode]; n.mode&modeType == modeDir {
			stack = append(stack, level{n.first, n.first + n.count, len(path)})
		}
	}
	return nil
}

// Xattrs iterates over the extended attributes of i in name order: the full
// name and the value. Both alias the Tree.
func (t *Tree) Xattrs(i Inode) iter.Seq2[[]byte, []byte] {
	return func(yield func([]byte, []byte) bool) {
		n := &t.inodes[i]
		for _, x := range t.xattrs[n.xfirst : n.xfirst+uint32(n.xcount)] {
			if !yield(t.xattrName(x), t.xattrValue(x)) {
				return
			}
		}
	}
}

func (t *Tree) nameOf(d dirent) []byte { return t.arena[d.name : d.name+uint32(d.len)] }

func (t *Tree) xattrName(x xattr) []byte { return t.arena[x.name : x.name+uint32(x.nameLen)] }

func (t *Tree) xattrValue(x xattr) []byte { return t.arena[x.value : x.value+uint32(x.valLen)] }
