package erofs

import (
	"fmt"
	"hash/maphash"
	"io/fs"
	"strings"
)

// childName is one name in a directory of a Builder, in the list of its
// directory's children and, while it lives, in the hash table.
type childName struct {
	off    uint32 // in Builder.names
	parent Inode
	inode  Inode
	next   uint32 // sibling, a dent number + 1; 0 ends the list
	len    uint8
	dead   bool
}

const tombstone = ^uint32(0)

func (b *Builder) name(d int) []byte {
	c := &b.dents[d]
	return b.names[c.off : c.off+uint32(c.len)]
}

// hash mixes a seed of this process in, so that no archive can be made to
// collide.
func (b *Builder) hash(parent Inode, name string) uint64 {
	return maphash.String(b.seed, name) ^ uint64(parent)*0x9E3779B97F4A7C15
}

// find returns the dent of a name in a directory, or -1 and the slot of the
// table where it would go.
func (b *Builder) find(parent Inode, name string) (slot, d int) {
	mask := uint64(len(b.table) - 1)
	slot = -1
	for h := b.hash(parent, name); ; h++ {
		s := int(h & mask)
		switch e := b.table[s]; e {
		case 0:
			if slot < 0 {
				slot = s
			}
			return slot, -1
		case tombstone:
			if slot < 0 {
				slot = s
			}
		default:
			c := &b.dents[e-1]
			if c.parent == parent && int(c.len) == len(name) && string(b.name(int(e-1))) == name {
				return s, int(e - 1)
			}
		}
	}
}

// addName enters name, which find did not find, at the slot that find returned.
func (b *Builder) addName(slot int, parent Inode, name string, i Inode) error {
	off, err := b.addBytes(name)
	if err != nil {
		return err
	}
	dir := &b.inodes[parent]
	b.dents = append(b.dents, childName{off: off, len: uint8(len(name)), parent: parent, inode: i, next: dir.first})
	dir.first = uint32(len(b.dents))
	dir.count++
	if b.table[slot] == 0 {
		b.used++
	}
	b.table[slot] = uint32(len(b.dents))
	if b.used*3 > len(b.table)*2 {
		b.rehash()
	}
	return nil
}

// rehash drops the tombstones and leaves the table at most one third full.
func (b *Builder) rehash() {
	live := 0
	for _, e := range b.table {
		if e != 0 && e != tombstone {
			live++
		}
	}
	size := 64
	for size < 3*live {
		size *= 2
	}
	old := b.table
	b.table, b.used = make([]uint32, size), live
	mask := uint64(size - 1)
	for _, e := range old {
		if e == 0 || e == tombstone {
			continue
		}
		c := &b.dents[e-1]
		h := maphash.Bytes(b.seed, b.name(int(e-1))) ^ uint64(c.parent)*0x9E3779B97F4A7C15
		for b.table[h&mask] != 0 {
			h++
		}
		b.table[h&mask] = e
	}
}

// resolve returns the directory that path is in and its last component, which
// is "" for the root. With create it makes missing directories.
func (b *Builder) resolve(path string, create bool) (Inode, string, error) {
	if path == "" || path == "." {
		return RootInode, "", nil
	}
	if len(path) > maxPath {
		return 0, "", fmt.Errorf("a path of %d bytes, Linux allows %d: %w", len(path), maxPath, fs.ErrInvalid)
	}
	cut := strings.LastIndexByte(path, '/')
	if cut < 0 {
		return RootInode, path, checkName(path)
	}
	name := path[cut+1:]
	if err := checkName(name); err != nil {
		return 0, "", err
	}
	if b.lastValid && b.lastDir == path[:cut] {
		return b.lastInode, name, nil
	}
	dir := RootInode
	for rest := path[:cut]; rest != ""; {
		part, tail, more := strings.Cut(rest, "/")
		if more && tail == "" {
			return 0, "", checkName("")
		}
		next, err := b.step(dir, part, create)
		if err != nil {
			return 0, "", err
		}
		dir, rest = next, tail
	}
	if cut == 0 {
		return 0, "", fmt.Errorf("the path is absolute: %w", fs.ErrInvalid)
	}
	b.lastDir, b.lastInode, b.lastValid = strings.Clone(path[:cut]), dir, true
	return dir, name, nil
}

// step goes from dir into its subdirectory name.
func (b *Builder) step(dir Inode, name string, create bool) (Inode, error) {
	if err := checkName(name); err != nil {
		return 0, err
	}
	slot, d := b.find(dir, name)
	switch {
	case d >= 0 && b.isDir(b.dents[d].inode):
		return b.dents[d].inode, nil
	case d >= 0:
		return 0, fmt.Errorf("%q on the way: %w", name, ErrNotDir)
	case !create:
		return 0, fs.ErrNotExist
	}
	i, err := b.newInode(Attr{Mode: modeDir | 0o755}, dir)
	if err != nil {
		return 0, err
	}
	return i, b.addName(slot, dir, name, i)
}

func checkName(s string) error {
	switch {
	case s == "" || s == "." || s == "..":
		return fmt.Errorf("the path is not clean, it has a component %q: %w", s, fs.ErrInvalid)
	case len(s) > maxName:
		return fmt.Errorf("a name of %d bytes, Linux allows %d: %w", len(s), maxName, fs.ErrInvalid)
	case strings.IndexByte(s, 0) >= 0:
		return fmt.Errorf("a name with a NUL byte: %w", fs.ErrInvalid)
	}
	return nil
}

// Remove takes away the name path and, if it is a directory, all that is below
// it. It fails with fs.ErrNotExist when there is no such name.
func (b *Builder) Remove(path string) error {
	if b.frozen {
		return errFrozen
	}
	dir, name, err := b.resolve(path, false)
	if err == nil && name == "" {
		err = fmt.Errorf("the root stays: %w", fs.ErrInvalid)
	}
	if err != nil {
		return fmt.Errorf("removing %q: %w", path, err)
	}
	slot, d := b.find(dir, name)
	if d < 0 {
		return fmt.Errorf("removing %q: %w", path, fs.ErrNotExist)
	}
	b.table[slot] = tombstone
	b.dents[d].dead = true
	b.inodes[dir].count--
	b.dropInode(b.dents[d].inode)
	return nil
}

// RemoveChildren takes away every name at any depth below the directory path
// whose inode keep does not want; a nil keep wants none. A directory that still
// holds a wanted name stays in any case.
func (b *Builder) RemoveChildren(path string, keep func(Inode) bool) error {
	if b.frozen {
		return errFrozen
	}
	i, ok := b.Lookup(path)
	if !ok {
		return fmt.Errorf("emptying %q: %w", path, fs.ErrNotExist)
	}
	if !b.isDir(i) {
		return fmt.Errorf("emptying %q: %w", path, ErrNotDir)
	}
	b.prune(i, keep)
	return nil
}

// prune removes what keep does not want from below dir. Its depth is bounded by
// maxPath.
func (b *Builder) prune(dir Inode, keep func(Inode) bool) {
	for e := b.inodes[dir].first; e != 0; {
		d := int(e - 1)
		e = b.dents[d].next
		if b.dents[d].dead {
			continue
		}
		i := b.dents[d].inode
		if b.isDir(i) {
			b.prune(i, keep)
			if b.inodes[i].count > 0 {
				continue
			}
		}
		if keep != nil && keep(i) {
			continue
		}
		slot, _ := b.find(dir, string(b.name(d)))
		b.table[slot] = tombstone
		b.dents[d].dead = true
		b.inodes[dir].count--
		b.dropInode(i)
	}
}

// dropInode takes one name from i, and empties it if it is a directory.
func (b *Builder) dropInode(i Inode) {
	b.inodes[i].nlink--
	if b.isDir(i) {
		b.lastValid = false
		b.prune(i, nil)
	}
}
