package erofs

import (
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"math"
	"strings"
)

// ErrNotDir is returned for a path that leads through something which is not a
// directory, as ENOTDIR is by the kernel.
var ErrNotDir = errors.New("not a directory")

// ErrXattrName is returned for an extended attribute whose name EROFS cannot
// store: it knows user., trusted., security. and the two POSIX ACL names.
var ErrXattrName = errors.New("extended attribute name that EROFS cannot store")

var errFrozen = errors.New("the builder was already turned into a tree")

// Limits of Linux, not of EROFS: what lies beyond could be stored but not used.
const (
	maxPath   = 4095 // PATH_MAX without its NUL
	maxTarget = 4095
)

// Builder collects the entries of a file system in any order and then becomes
// a Tree. Paths are slash-separated, relative and clean; "" and "." are the
// root. No path is resolved through a symbolic link. An Inode that a Builder
// returned holds only until Tree renumbers them. A Builder is not safe for
// concurrent use.
type Builder struct {
	inodes []inode // first of a directory is its newest child, a dent number + 1
	dents  []childName
	table  []uint32 // dent number + 1 by hash of (parent, name); open addressing
	used   int      // slots of table that are not empty, tombstones included
	seed   maphash.Seed
	names  []byte // names and link targets
	exts   []Extent
	xattrs []listedXattr
	values internTable // names and values of xattrs

	// The directory of the last path that was looked up: archives mostly list a
	// directory's entries one after the other.
	lastDir   string
	lastInode Inode
	lastValid bool

	frozen bool
}

// NewBuilder returns a Builder that holds a root directory of mode 0755, owned
// by root, modified at the epoch: what an archive without a root entry means.
func NewBuilder() *Builder {
	b := &Builder{seed: maphash.MakeSeed(), table: make([]uint32, 64)}
	b.inodes = append(b.inodes, inode{mode: modeDir | 0o755, nlink: 1})
	return b
}

// Put creates path, or replaces what is there, with an inode of type and
// attributes a. A directory over a directory takes the new attributes, loses its
// extended ones and keeps its children; anything else loses that name and what
// is below it. Missing parents are created with mode 0755.
func (b *Builder) Put(path string, a Attr) (Inode, error) {
	if fileType(a.Mode) == 0 || a.Mode&modeType == modeLink {
		return 0, fmt.Errorf("putting %q: mode %#o is not of a type that this call makes: %w", path, a.Mode, fs.ErrInvalid)
	}
	i, err := b.put(path, a)
	if err != nil {
		return 0, fmt.Errorf("putting %q: %w", path, err)
	}
	return i, nil
}

// PutSymlink is Put for a symbolic link with that target. The type bits of
// a.Mode are implied.
func (b *Builder) PutSymlink(path string, a Attr, target string) (Inode, error) {
	if target == "" || len(target) > maxTarget || strings.IndexByte(target, 0) >= 0 {
		return 0, fmt.Errorf("putting symbolic link %q: a target has 1 to %d bytes and no NUL: %w", path, maxTarget, fs.ErrInvalid)
	}
	a.Mode = modeLink | a.Mode&^modeType
	off, err := b.addBytes(target)
	if err != nil {
		return 0, fmt.Errorf("putting symbolic link %q: %w", path, err)
	}
	i, err := b.put(path, a)
	if err != nil {
		return 0, fmt.Errorf("putting symbolic link %q: %w", path, err)
	}
	n := &b.inodes[i]
	n.first, n.count, n.size = off, uint32(len(target)), int64(len(target))
	return i, nil
}

func (b *Builder) put(path string, a Attr) (Inode, error) {
	if b.frozen {
		return 0, errFrozen
	}
	if a.Size < 0 {
		return 0, fmt.Errorf("a size of %d bytes: %w", a.Size, fs.ErrInvalid)
	}
	dir, name, err := b.resolve(path, true)
	if err != nil {
		return 0, err
	}
	isDir := a.Mode&modeType == modeDir
	if name == "" {
		if !isDir {
			return 0, fmt.Errorf("the root must be a directory: %w", fs.ErrInvalid)
		}
		b.inodes[RootInode].xfirst, b.inodes[RootInode].xcount = 0, 0
		b.setAttr(RootInode, a)
		return RootInode, nil
	}
	slot, d := b.find(dir, name)
	if d >= 0 && isDir && b.isDir(b.dents[d].inode) {
		i := b.dents[d].inode
		b.inodes[i].xfirst, b.inodes[i].xcount = 0, 0
		b.setAttr(i, a)
		return i, nil
	}
	i, err := b.newInode(a, dir)
	if err != nil {
		return 0, err
	}
	if d >= 0 {
		b.dropInode(b.dents[d].inode)
		b.dents[d].inode = i
		return i, nil
	}
	return i, b.addName(slot, dir, name, i)
}

// Link makes path another name of the inode to, which is not a directory, and
// replaces what was at path.
func (b *Builder) Link(path string, to Inode) error {
	if err := b.link(path, to); err != nil {
		return fmt.Errorf("linking %q: %w", path, err)
	}
	return nil
}

func (b *Builder) link(path string, to Inode) error {
	switch {
	case b.frozen:
		return errFrozen
	case int(to) >= len(b.inodes) || b.inodes[to].nlink == 0:
		return fmt.Errorf("the file that it should be a name of: %w", fs.ErrNotExist)
	case b.isDir(to):
		return fmt.Errorf("a directory cannot have two names: %w", fs.ErrInvalid)
	}
	dir, name, err := b.resolve(path, true)
	if err != nil {
		return err
	}
	if name == "" {
		return fmt.Errorf("the root must be a directory: %w", fs.ErrInvalid)
	}
	slot, d := b.find(dir, name)
	b.inodes[to].nlink++ // first: its last name may be in what is replaced
	if d >= 0 {
		b.dropInode(b.dents[d].inode)
		b.dents[d].inode = to
		return nil
	}
	if err := b.addName(slot, dir, name, to); err != nil {
		b.inodes[to].nlink--
		return err
	}
	return nil
}

// Lookup returns the inode at path. It does not follow symbolic links.
func (b *Builder) Lookup(path string) (Inode, bool) {
	if b.frozen {
		return 0, false
	}
	dir, name, err := b.resolve(path, false)
	if err != nil {
		return 0, false
	}
	if name == "" {
		return RootInode, true
	}
	if _, d := b.find(dir, name); d >= 0 {
		return b.dents[d].inode, true
	}
	return 0, false
}

// Attr returns the attributes of i.
func (b *Builder) Attr(i Inode) Attr { return b.inodes[i].attr() }

// SetAttr replaces the attributes of i. Its type stays: the type bits of a.Mode
// are ignored, as is Size of what is not a regular file.
func (b *Builder) SetAttr(i Inode, a Attr) {
	a.Mode = a.Mode&^modeType | b.inodes[i].mode&modeType
	b.setAttr(i, a)
}

// setAttr stores a in i and normalises what its type has no use for.
func (b *Builder) setAttr(i Inode, a Attr) {
	n := &b.inodes[i]
	n.mode, n.uid, n.gid = a.Mode, a.UID, a.GID
	n.mtime, n.nsec = a.Mtime+int64(a.MtimeNsec/1e9), a.MtimeNsec%1e9
	n.rdev = 0
	switch a.Mode & modeType {
	case modeChar, modeBlock:
		n.rdev = a.Rdev
	case modeReg:
		n.size = a.Size
	}
}

// SetExtents says where the bytes of the regular file i are. They must cover
// [0, Size) without gap or overlap by the time of NewLayout, which checks it.
// The extents are copied.
func (b *Builder) SetExtents(i Inode, e []Extent) {
	n := &b.inodes[i]
	if n.mode&modeType == modeReg {
		b.exts = setExtents(n, b.exts, e)
	}
}

// setExtents stores e as the run of n, in place if it fits there.
func setExtents(n *inode, all, e []Extent) []Extent {
	if len(e) > int(n.count) {
		n.first = uint32(len(all))
		all = append(all, e...)
	} else {
		copy(all[n.first:], e)
	}
	n.count = uint32(len(e))
	return all
}

func (b *Builder) isDir(i Inode) bool { return b.inodes[i].mode&modeType == modeDir }

func (b *Builder) newInode(a Attr, parent Inode) (Inode, error) {
	if len(b.inodes) >= math.MaxUint32 {
		return 0, errors.New("more inodes than 32 bits can number")
	}
	i := Inode(len(b.inodes))
	b.inodes = append(b.inodes, inode{nlink: 1})
	if a.Mode&modeType == modeDir {
		b.inodes[i].parent = parent
	}
	b.setAttr(i, a)
	return i, nil
}

// addBytes copies s into the arena of names.
func (b *Builder) addBytes(s string) (uint32, error) {
	off := len(b.names)
	if off+len(s) > math.MaxUint32 {
		return 0, errors.New("more than 4 GiB of names and link targets")
	}
	b.names = append(b.names, s...)
	return uint32(off), nil
}
