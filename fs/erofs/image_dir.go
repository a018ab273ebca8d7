package erofs

import "bytes"

// Dirent is one name of a directory, "." and ".." included.
type Dirent struct {
	// Name holds until the next one.
	Name []byte
	Nid  Nid
	// Type is the file type, in the bits that a mode has for it.
	Type uint16
	// Next is where List goes on behind this name.
	Next int64
}

// Lookup returns the inode of a name in a directory; false if there is none, or
// no directory.
func (m *Image) Lookup(dir Nid, name string) (Nid, bool, error) {
	s := m.open(lookAhead)
	defer s.close()
	d, err := s.dir(dir)
	if err != nil || d.blocks == 0 {
		return 0, false, err
	}
	// The block is the last whose first name is not behind this one.
	lo, hi := int64(0), d.blocks-1
	for lo < hi {
		mid := lo + (hi-lo+1)/2
		if err := s.dirBlock(d, mid); err != nil {
			return 0, false, err
		}
		first, err := d.name(0)
		if err != nil {
			return 0, false, err
		}
		if string(first) <= name {
			lo = mid
		} else {
			hi = mid - 1
		}
	}
	if err := s.dirBlock(d, lo); err != nil {
		return 0, false, err
	}
	return d.find(name)
}

// List gives the names of a directory from position from on to fn, as they are
// sorted, until fn returns false. Position 0 is the first name, and any other is
// rounded up to that of a name. With stat, all names but "." and ".." come with
// their attributes.
func (m *Image) List(dir Nid, from int64, stat bool, fn func(Dirent, Stat) bool) error {
	s := m.open(listAhead)
	defer s.close()
	d, err := s.dir(dir)
	if err != nil || from < 0 {
		return err
	}
	for k := from / m.block; k < d.blocks; k++ {
		if err := s.dirBlock(d, k); err != nil {
			return err
		}
		first := int(max(from-k*m.block, 0)+direntSize-1) / direntSize
		for n := first; n < d.count; n++ {
			e, err := d.entry(n)
			if err != nil {
				return err
			}
			if e.Next = k*m.block + int64(n+1)*direntSize; n+1 == d.count {
				e.Next = (k + 1) * m.block
			}
			var st Stat
			if stat && string(e.Name) != "." && string(e.Name) != ".." {
				if st, err = s.stat(e.Nid); err != nil {
					return err
				}
			}
			if !fn(e, st) {
				return nil
			}
		}
	}
	return nil
}

// dirView is a directory and the block of it that was read last.
type dirView struct {
	inode  diskInode
	off    int64 // of the inode
	blocks int64 // 0: no directory

	at    int64 // number of the block in b, -1 for none
	b     []byte
	count int // of names
}

func (s *question) dir(nid Nid) (*dirView, error) {
	d := &s.dirs
	*d = dirView{at: -1}
	var err error
	if d.inode, d.off, err = s.inode(nid); err == nil && d.inode.Mode&modeType == modeDir {
		d.blocks = alignUp(int64(d.inode.Size), s.m.block) / s.m.block
	}
	return d, err
}

// dirBlock reads block k.
func (s *question) dirBlock(d *dirView, k int64) error {
	if d.at == k {
		return nil
	}
	off := (int64(d.inode.U) + k) * s.m.block
	if k == d.blocks-1 && d.inode.layout() == layoutInline {
		off = d.off + d.inode.head()
	}
	b, err := s.view(off, min(s.m.block, int64(d.inode.Size)-k*s.m.block))
	if err != nil {
		return err
	}
	d.at, d.b = k, s.block[:copy(s.block[:], b)]
	if len(b) < direntSize {
		return changed(off, "a directory block of %d bytes", len(b))
	}
	start := int(getDirent(b).NameOff)
	if d.count = start / direntSize; d.count == 0 || start > len(b) {
		return changed(off, "a directory block with names at byte %d", start)
	}
	return nil
}

// name returns name number n of the block.
func (d *dirView) name(n int) ([]byte, error) {
	start, end := int(getDirent(d.b[n*direntSize:]).NameOff), len(d.b)
	if n+1 < d.count {
		end = int(getDirent(d.b[(n+1)*direntSize:]).NameOff)
	}
	if start >= end || end > len(d.b) {
		return nil, changed(d.off, "a name at [%d, %d) of block %d of a directory", start, end, d.at)
	}
	if n+1 == d.count { // padding may follow the last one
		return bytes.TrimRight(d.b[start:end], "\x00"), nil
	}
	return d.b[start:end], nil
}

func (d *dirView) entry(n int) (Dirent, error) {
	name, err := d.name(n)
	raw := getDirent(d.b[n*direntSize:])
	if err == nil && (int(raw.Type) >= len(typeModes) || raw.Nid > 1<<32-1) {
		err = changed(d.off, "a name of type %d in block %d of a directory", raw.Type, d.at)
	}
	if err != nil {
		return Dirent{}, err
	}
	return Dirent{Name: name, Nid: Nid(raw.Nid), Type: typeModes[raw.Type]}, nil
}

// find looks for a name in the block.
func (d *dirView) find(name string) (Nid, bool, error) {
	lo, hi := 0, d.count
	for lo < hi {
		mid := (lo + hi) / 2
		got, err := d.name(mid)
		if err != nil {
			return 0, false, err
		}
		switch {
		case string(got) == name:
			e, err := d.entry(mid)
			return e.Nid, err == nil, err
		case string(got) < name:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return 0, false, nil
}
