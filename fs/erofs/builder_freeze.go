package erofs

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"math"
	"slices"
)

// Tree ends the use of b and returns what it holds: names sorted, link counts
// computed, inodes numbered in the order of their first paths. Equal entries
// make equal trees, whatever order they came in.
func (b *Builder) Tree() (*Tree, error) {
	if b.frozen {
		return nil, errFrozen
	}
	if len(b.values.arena)+len(b.names) > math.MaxUint32 {
		return nil, errors.New("more than 4 GiB of names, link targets and extended attributes")
	}
	b.frozen = true
	b.table, b.values.table, b.values.spans = nil, nil, nil
	f := freezer{b: b, renumber: make([]Inode, len(b.inodes))}
	// Xattr offsets stay as they are: their arena becomes the start of the tree's.
	f.t.arena = slices.Grow(b.values.arena, len(b.names))
	f.run()
	*b = Builder{frozen: true}
	return &f.t, nil
}

// freezer walks a Builder depth first and copies it in path order.
type freezer struct {
	b        *Builder
	t        Tree
	renumber []Inode // new number by old one; 0 not yet seen, as the root is never a child
	sorted   []sortedName
}

// openDir is a directory whose children are being visited.
type openDir struct {
	self       Inode
	next, last uint32 // dents in the tree that are still to be numbered
}

// sortedName carries the first bytes of a name, big endian, so that sorting
// rarely has to look at the name itself.
type sortedName struct {
	head uint64
	dent uint32
}

func (f *freezer) run() {
	live := 0
	for k := range f.b.inodes {
		if f.b.inodes[k].nlink > 0 {
			live++
		}
	}
	f.t.inodes = make([]inode, 0, live)
	f.t.dents = make([]dirent, 0, len(f.b.dents))
	f.t.exts = make([]Extent, 0, len(f.b.exts))
	f.t.xattrs = make([]xattr, 0, len(f.b.xattrs))
	stack := []openDir{f.open(f.addInode(RootInode), RootInode)}
	for len(stack) > 0 {
		top := &stack[len(stack)-1]
		if top.next == top.last {
			stack = stack[:len(stack)-1]
			continue
		}
		d := &f.t.dents[top.next]
		top.next++
		old := d.inode
		if i := f.renumber[old]; i != 0 {
			d.inode = i
			f.t.inodes[i].nlink++
			continue
		}
		d.inode = f.addInode(old)
		f.renumber[old] = d.inode
		if f.b.isDir(old) {
			f.t.inodes[top.self].nlink++
			f.t.inodes[d.inode].parent = top.self
			stack = append(stack, f.open(d.inode, old))
		}
	}
}

// addInode copies an inode that was not seen before, without its children.
func (f *freezer) addInode(old Inode) Inode {
	n := f.b.inodes[old]
	n.nlink = 1
	switch n.mode & modeType {
	case modeDir:
		n.nlink = 2
	case modeLink:
		target := f.b.names[n.first : n.first+n.count]
		n.first = uint32(len(f.t.arena))
		f.t.arena = append(f.t.arena, target...)
	case modeReg:
		e := f.b.exts[n.first : n.first+n.count]
		n.first = uint32(len(f.t.exts))
		f.t.exts = append(f.t.exts, e...)
	}
	head := n.xfirst
	n.xfirst = uint32(len(f.t.xattrs))
	for e := head; e != 0; e = f.b.xattrs[e-1].next {
		f.t.xattrs = append(f.t.xattrs, f.b.xattrs[e-1].xattr)
	}
	slices.SortFunc(f.t.xattrs[n.xfirst:], func(x, y xattr) int {
		return bytes.Compare(f.t.xattrName(x), f.t.xattrName(y))
	})
	f.t.inodes = append(f.t.inodes, n)
	return Inode(len(f.t.inodes) - 1)
}

// open appends the sorted names of a directory to the tree. Their inodes are
// still the builder's.
func (f *freezer) open(i, old Inode) openDir {
	f.sorted = f.sorted[:0]
	for e := f.b.inodes[old].first; e != 0; e = f.b.dents[e-1].next {
		if !f.b.dents[e-1].dead {
			f.sorted = append(f.sorted, sortedName{nameHead(f.b.name(int(e - 1))), e - 1})
		}
	}
	slices.SortFunc(f.sorted, func(x, y sortedName) int {
		if c := cmp.Compare(x.head, y.head); c != 0 {
			return c
		}
		return bytes.Compare(f.b.name(int(x.dent)), f.b.name(int(y.dent)))
	})
	first := uint32(len(f.t.dents))
	for _, s := range f.sorted {
		d := &f.b.dents[s.dent]
		f.t.dents = append(f.t.dents, dirent{name: uint32(len(f.t.arena)), len: d.len, inode: d.inode})
		f.t.arena = append(f.t.arena, f.b.name(int(s.dent))...)
	}
	n := &f.t.inodes[i]
	n.first, n.count = first, uint32(len(f.sorted))
	return openDir{self: i, next: first, last: first + n.count}
}

// nameHead returns the first eight bytes of a name as a number that compares
// as they do. Names hold no NUL, so padding with zeros keeps the order.
func nameHead(name []byte) uint64 {
	var b [8]byte
	copy(b[:], name)
	return binary.BigEndian.Uint64(b[:])
}
