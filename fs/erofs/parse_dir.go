package erofs

import (
	"bytes"
	"math"
)

// dirReader is what must hold through all blocks of one directory.
type dirReader struct {
	dir      Inode
	off      int64 // of the directory's inode, for errors
	last     []byte
	entries  int
	one, two bool // "." and ".." were there
}

// readDir reads the names of a directory. Until then its record remembers
// where they are, see readDirContent.
func (s *parser) readDir(dir Inode) error {
	n := &s.tree.inodes[dir]
	size, first, tail := n.size, int64(n.first)*s.block, int64(n.count)
	n.size, n.first, n.count = 0, uint32(len(s.tree.dents)), 0
	r := dirReader{dir: dir, off: s.address(s.nids[dir]), last: make([]byte, 0, maxName)}
	s.dirs = 0
	for at := int64(0); at < size; at += s.block {
		b, err := s.dirBlock(&r, first+at, min(s.block, size-at), tail, at+s.block >= size)
		if err != nil {
			return err
		}
		if err := s.readDirBlock(&r, b, at+s.block >= size); err != nil {
			return err
		}
	}
	n = &s.tree.inodes[dir] // the array may have moved
	switch {
	case !r.one || !r.two:
		return refuse(RuleParent, r.off, `a directory without "." or ".."`)
	case n.nlink != s.dirs+2:
		return refuse(RuleNlink, r.off, "a link count of %d and %d subdirectories", n.nlink, s.dirs)
	}
	n.count = uint32(len(s.tree.dents)) - n.first
	return nil
}

// dirBlock copies a block of a directory: the names in it are compared while
// other metadata is read.
func (s *parser) dirBlock(r *dirReader, off, n, tail int64, last bool) ([]byte, error) {
	if last && tail > 0 {
		off = r.off + tail // claimed with its inode
	} else if err := s.meta.claim(off, s.block, false); err != nil {
		return nil, err
	}
	b, err := s.meta.view(off, n)
	if err != nil {
		return nil, err
	}
	return s.buf[:copy(s.buf, b)], nil
}

func (s *parser) readDirBlock(r *dirReader, b []byte, last bool) error {
	if len(b) < direntSize {
		return refuse(RuleDirectory, r.off, "a directory block of %d bytes", len(b))
	}
	start := int(getDirent(b).NameOff)
	if start < direntSize || start%direntSize != 0 || start > len(b) {
		return refuse(RuleDirectory, r.off, "names that begin at byte %d of a directory block of %d", start, len(b))
	}
	count := start / direntSize
	if r.entries += count; r.entries > s.policy.MaxEntries {
		return refuse(RuleLimit, r.off, "a directory of more than %d entries", s.policy.MaxEntries)
	}
	end := start
	for k := range count {
		d := getDirent(b[k*direntSize:])
		if int(d.NameOff) != end {
			return refuse(RuleDirectory, r.off, "a name at byte %d, not at %d, of a directory block", d.NameOff, end)
		}
		if b[k*direntSize+direntSize-1] != 0 {
			return refuse(RuleDirectory, r.off, "a reserved byte of a directory entry is not zero")
		}
		if k+1 < count {
			end = int(getDirent(b[(k+1)*direntSize:]).NameOff)
		} else if end = len(b); !last {
			// Only the padding of a full block may follow the last name.
			end = int(d.NameOff) + len(bytes.TrimRight(b[min(int(d.NameOff), len(b)):], "\x00"))
		}
		if end <= int(d.NameOff) || end > len(b) {
			return refuse(RuleDirectory, r.off, "a name at [%d, %d) of a directory block of %d bytes", d.NameOff, end, len(b))
		}
		if err := s.readEntry(r, d, b[d.NameOff:end]); err != nil {
			return err
		}
	}
	return nil
}

func (s *parser) readEntry(r *dirReader, d diskDirent, name []byte) error {
	if len(name) > maxName || bytes.IndexByte(name, '/') >= 0 || bytes.IndexByte(name, 0) >= 0 {
		return refuse(RuleName, r.off, "the name %.300q", name)
	}
	if bytes.Compare(r.last, name) >= 0 {
		return refuse(RuleOrder, r.off, "the name %q after %q", name, r.last)
	}
	r.last = append(r.last[:0], name...)
	if d.Nid > math.MaxUint32 {
		return refuse(RuleBounds, r.off, "%q leads to inode %d", name, d.Nid)
	}
	nid := uint32(d.Nid)
	if len(name) <= 2 && name[0] == '.' && name[len(name)-1] == '.' {
		return s.checkDots(r, name, nid, d.Type)
	}
	if len(s.tree.dents) >= s.policy.MaxNames {
		return refuse(RuleLimit, r.off, "more than %d names", s.policy.MaxNames)
	}
	i, err := s.child(r, nid, name)
	if err != nil {
		return err
	}
	n := &s.tree.inodes[i]
	if d.Type != fileType(n.mode) {
		return refuse(RuleType, r.off, "%q is of type %d, its inode's mode is %#o", name, d.Type, n.mode)
	}
	if n.mode&modeType == modeDir {
		n.parent = r.dir
		s.dirs++
	}
	at, err := s.toArena(name)
	if err != nil {
		return err
	}
	s.tree.dents = grow(s.tree.dents, dirent{name: at, len: uint8(len(name)), inode: i}, uint64(s.policy.MaxNames))
	return nil
}

// checkDots checks "." and "..".
func (s *parser) checkDots(r *dirReader, name []byte, nid uint32, ftype uint8) error {
	want := s.nids[r.dir]
	if len(name) == 2 {
		want = s.nids[s.tree.inodes[r.dir].parent]
		r.two = true
	} else {
		r.one = true
	}
	if ftype != ftDir {
		return refuse(RuleType, r.off, "%q is of type %d", name, ftype)
	}
	if nid != want {
		return refuse(RuleParent, r.off, "%q leads to inode %d, not %d", name, nid, want)
	}
	return nil
}

// child returns the inode of a name: a new one, or one that has said that it
// has several names.
func (s *parser) child(r *dirReader, nid uint32, name []byte) (Inode, error) {
	if i, ok := s.names[nid]; ok {
		if s.seen[i]++; s.seen[i] > s.tree.inodes[i].nlink {
			return 0, refuse(RuleNlink, s.address(nid), "a link count of %d and more names, %q among them", s.tree.inodes[i].nlink, name)
		}
		return i, nil
	}
	off := s.address(nid)
	if !s.meta.isOwned(off) {
		return s.readInode(nid)
	}
	// The place was read before as something else, or as an inode that may have
	// one name only. Say which.
	d, err := s.rawInode(off)
	switch {
	case err == nil && d.Mode&modeType == modeDir:
		return 0, refuse(RuleParent, r.off, "%q is another name of the directory at byte %d", name, off)
	case err == nil && d.Nlink == 1:
		return 0, refuse(RuleNlink, off, "a link count of 1 and a second name, %q", name)
	}
	return 0, refuse(RuleOverlap, off, "%q leads into another structure", name)
}
