package erofs

import "encoding/binary"

// Xattr returns the value of an extended attribute of an inode by its full name;
// false if it has none.
func (m *Image) Xattr(nid Nid, name string) (value []byte, ok bool, err error) {
	index, suffix, known := splitXattr(name)
	if !known {
		return nil, false, nil
	}
	s := m.open(lookAhead)
	defer s.close()
	err = s.xattrs(nid, func(x rawXattr) bool {
		if x.index == index && string(x.suffix) == suffix {
			value, ok = append([]byte{}, x.value...), true
		}
		return !ok
	})
	return value, ok, err
}

// Xattrs gives the full names of an inode's extended attributes to fn, in no
// order. A name holds until fn returns.
func (m *Image) Xattrs(nid Nid, fn func(name []byte)) error {
	s := m.open(lookAhead)
	defer s.close()
	var name []byte
	return s.xattrs(nid, func(x rawXattr) bool {
		prefix, _ := xattrPrefixOf(x.index)
		name = append(append(name[:0], prefix...), x.suffix...)
		fn(name)
		return true
	})
}

// xattrs gives an inode's attributes to fn until that returns false: those of the
// shared area, then those of its own.
func (s *question) xattrs(nid Nid, fn func(rawXattr) bool) error {
	d, off, err := s.inode(nid)
	size := xattrBodySize(d.XattrCount)
	if err != nil || size == 0 {
		return err
	}
	off += int64(d.size())
	b, err := s.view(off, int64(size))
	if err != nil {
		return err
	}
	// Copied: shared attributes are read while this is in use.
	s.body = append(s.body[:0], b...)
	shared, rest := int(s.body[4]), s.body[xattrHeaderSize:]
	if 4*shared > len(rest) {
		return changed(off, "%d shared attributes in a body of %d bytes", shared, size)
	}
	for ; shared > 0; shared-- {
		x, err := s.sharedXattr(binary.LittleEndian.Uint32(rest))
		if err != nil || !fn(x) {
			return err
		}
		rest = rest[4:]
	}
	for len(rest) > 0 {
		x, length, err := cutXattr(off, rest)
		if err != nil {
			return changed(off, "%v", err)
		}
		if !fn(x) {
			return nil
		}
		rest = rest[length:]
	}
	return nil
}

func (s *question) sharedXattr(id uint32) (rawXattr, error) {
	off := int64(s.m.super.XattrBlock)*s.m.block + 4*int64(id)
	b, err := s.view(off, xattrEntrySize)
	if err != nil {
		return rawXattr{}, err
	}
	length := int64(xattrEntryLen(int(b[0]), int(binary.LittleEndian.Uint16(b[2:]))))
	if b, err = s.view(off, length); err != nil {
		return rawXattr{}, err
	}
	x, _, err := cutXattr(off, b)
	if err != nil {
		return x, changed(off, "%v", err)
	}
	return x, nil
}
