package erofs

import "sort"

// Lookup returns the inode of a name in a directory, by binary search and
// without allocating. "." and ".." are not names of a Tree.
func (t *Tree) Lookup(dir Inode, name string) (Inode, bool) {
	n := &t.inodes[dir]
	if n.mode&modeType != modeDir {
		return 0, false
	}
	run := t.dents[n.first : n.first+n.count]
	at := sort.Search(len(run), func(k int) bool { return string(t.nameOf(run[k])) >= name })
	if at == len(run) || string(t.nameOf(run[at])) != name {
		return 0, false
	}
	return run[at].inode, true
}

// Entry returns the name number k of a directory in name order, so that a
// listing can go on where an earlier one ended; ok is false behind the last. The
// name aliases the Tree.
func (t *Tree) Entry(dir Inode, k int) (name []byte, i Inode, ok bool) {
	n := &t.inodes[dir]
	if n.mode&modeType != modeDir || k < 0 || k >= int(n.count) {
		return nil, 0, false
	}
	d := t.dents[int(n.first)+k]
	return t.nameOf(d), d.inode, true
}

// Xattr returns the value of an extended attribute of i by its full name. It
// aliases the Tree.
func (t *Tree) Xattr(i Inode, name string) ([]byte, bool) {
	n := &t.inodes[i]
	for _, x := range t.xattrs[n.xfirst : n.xfirst+uint32(n.xcount)] {
		if string(t.xattrName(x)) == name {
			return t.xattrValue(x), true
		}
	}
	return nil, false
}

func (t *Tree) nameOf(d dirent) []byte { return t.arena[d.name : d.name+uint32(d.len)] }
