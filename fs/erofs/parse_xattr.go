package erofs

import (
	"bytes"
	"encoding/binary"
	"slices"
)

// xattrLoad gathers the attributes of one inode.
type xattrLoad struct {
	off    int64 // of the body, for errors
	mode   uint16
	filter uint32
	bytes  int
	first  int
}

// readXattrs reads the attribute body at off into the tree and checks it.
func (s *parser) readXattrs(off int64, d *diskInode, n *inode) error {
	size := xattrBodySize(d.XattrCount)
	if size == 0 {
		return nil
	}
	b, err := s.meta.view(off, int64(size))
	if err != nil {
		return err
	}
	// Copied: shared attributes are read while this is in use.
	b = append(s.xbuf[:0], b...)
	s.xbuf = b
	if bytes.Count(b[5:xattrHeaderSize], []byte{0}) != xattrHeaderSize-5 {
		return refuse(RuleXattr, off, "a reserved byte of an attribute body is not zero")
	}
	x := xattrLoad{off: off, mode: n.mode, filter: ^uint32(0), first: len(s.tree.xattrs)}
	shared := int(b[4])
	rest := b[xattrHeaderSize:]
	if 4*shared > len(rest) {
		return refuse(RuleXattr, off, "%d shared attributes in a body of %d bytes", shared, size)
	}
	for ; shared > 0; shared-- {
		if err := s.sharedXattr(&x, binary.LittleEndian.Uint32(rest)); err != nil {
			return err
		}
		rest = rest[4:]
	}
	for len(rest) > 0 {
		e, length, err := cutXattr(x.off, rest)
		if err != nil {
			return err
		}
		entry, err := s.storeXattr(x.off, e)
		if err != nil {
			return err
		}
		if err := s.addXattr(&x, entry); err != nil {
			return err
		}
		rest = rest[length:]
	}
	return s.finishXattrs(&x, binary.LittleEndian.Uint32(b), n)
}

// finishXattrs sorts the attributes and checks what is true of them together.
func (s *parser) finishXattrs(x *xattrLoad, filter uint32, n *inode) error {
	t := s.tree
	all := t.xattrs[x.first:]
	slices.SortFunc(all, func(a, b xattr) int { return bytes.Compare(t.xattrName(a), t.xattrName(b)) })
	for k := 1; k < len(all); k++ {
		if bytes.Equal(t.xattrName(all[k-1]), t.xattrName(all[k])) {
			return refuse(RuleXattr, x.off, "the attribute %q twice", t.xattrName(all[k]))
		}
	}
	// The kernel does not look for an attribute that the filter excludes: a wrong
	// one hides attributes from some kernels and not from others.
	want := x.filter
	if s.super.Compat&compatXattrFilter == 0 {
		want = 0
	}
	if filter != want {
		return refuse(RuleXattr, x.off, "an attribute filter of %#08x, the names give %#08x", filter, want)
	}
	n.xfirst, n.xcount = uint32(x.first), uint16(len(all))
	return nil
}

// rawXattr is an entry as it is on disk.
type rawXattr struct {
	index         uint8
	suffix, value []byte
}

// cutXattr cuts the first entry, of length bytes, from b.
func cutXattr(off int64, b []byte) (e rawXattr, length int, err error) {
	if len(b) < xattrEntrySize {
		return e, 0, refuse(RuleXattr, off, "%d bytes where an attribute begins", len(b))
	}
	name, value := int(b[0]), int(binary.LittleEndian.Uint16(b[2:]))
	length = xattrEntryLen(name, value)
	if length > len(b) {
		return e, 0, refuse(RuleXattr, off, "an attribute of %d bytes where there are %d", length, len(b))
	}
	e = rawXattr{index: b[1], suffix: b[xattrEntrySize:][:name], value: b[xattrEntrySize+name:][:value]}
	for _, pad := range b[xattrEntrySize+name+value : length] {
		if pad != 0 {
			return e, 0, refuse(RuleXattr, off, "the padding of an attribute is not zero")
		}
	}
	return e, length, nil
}

// sharedXattr adds the attribute id of the shared area. It is read once,
// however many inodes have it.
func (s *parser) sharedXattr(x *xattrLoad, id uint32) error {
	if e, ok := s.once[id]; ok {
		return s.addXattr(x, e)
	}
	off := int64(s.super.XattrBlock)*s.block + 4*int64(id)
	b, err := s.meta.view(off, xattrEntrySize)
	if err != nil {
		return err
	}
	length := int64(xattrEntryLen(int(b[0]), int(binary.LittleEndian.Uint16(b[2:]))))
	if b, err = s.meta.view(off, length); err != nil {
		return err
	}
	raw, _, err := cutXattr(off, b)
	if err != nil {
		return err
	}
	e, err := s.storeXattr(off, raw)
	if err != nil {
		return err
	}
	if err := s.meta.claim(off, length, true); err != nil {
		return err
	}
	s.once[id] = e
	return s.addXattr(x, e)
}

// storeXattr checks an entry's form and puts it into the arena.
func (s *parser) storeXattr(off int64, e rawXattr) (x xattr, err error) {
	prefix, exact := xattrPrefixOf(e.index)
	length := len(prefix) + len(e.suffix)
	switch {
	case prefix == "":
		return x, refuse(RuleXattr, off, "attribute name index %#x is unknown", e.index)
	case exact != (len(e.suffix) == 0):
		return x, refuse(RuleXattr, off, "an attribute name %q behind %q", e.suffix, prefix)
	case bytes.IndexByte(e.suffix, 0) >= 0:
		return x, refuse(RuleXattr, off, "an attribute name with a NUL byte")
	}
	x.nameLen, x.valLen = uint16(length), uint16(len(e.value))
	name := append(append(make([]byte, 0, 320), prefix...), e.suffix...)
	at, known := s.label[string(name)]
	if !known {
		if at, err = s.toArena(name); err != nil {
			return x, err
		}
		if len(s.label) < prefixMapMax {
			s.label[string(name)] = at
		}
	}
	x.name = at
	x.value, err = s.toArena(e.value)
	return x, err
}

// addXattr gives the inode an attribute.
func (s *parser) addXattr(x *xattrLoad, e xattr) error {
	t := s.tree
	name := t.xattrName(e)
	index, suffix, _ := splitXattr(name)
	x.filter &^= 1 << (xxh32(suffix, xattrFilterSeed+uint32(index)) & 31)
	x.bytes += len(name) + int(e.valLen)
	switch {
	case len(t.xattrs)-x.first >= s.policy.MaxXattrs:
		return refuse(RuleLimit, x.off, "more than %d extended attributes", s.policy.MaxXattrs)
	case x.bytes > s.policy.MaxXattrBytes:
		return refuse(RuleLimit, x.off, "more than %d bytes of extended attributes", s.policy.MaxXattrBytes)
	case len(t.xattrs) >= s.policy.MaxXattrRefs:
		return refuse(RuleLimit, x.off, "more than %d extended attributes in the image", s.policy.MaxXattrRefs)
	}
	if why := CheckXattr(string(name), t.xattrValue(e), x.mode); why != "" && !s.policy.AnyXattrs {
		return refuse(RuleXattrPolicy, x.off, "the attribute %q: %s", name, why)
	}
	t.xattrs = append(t.xattrs, e)
	return nil
}
