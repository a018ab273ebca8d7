package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"math"
)

// listedXattr is an extended attribute in the list of its inode.
type listedXattr struct {
	xattr
	next uint32 // number of the next one + 1; 0 ends the list
}

// SetXattr sets the extended attribute with that full name. It fails with
// ErrXattrName for a name that EROFS has no place for, and when the name, the
// value or all attributes of i together are larger than the format allows. The
// value is copied.
func (b *Builder) SetXattr(i Inode, name string, value []byte) error {
	if b.frozen {
		return errFrozen
	}
	if err := b.checkXattr(i, name, value); err != nil {
		return fmt.Errorf("setting extended attribute %q: %w", name, err)
	}
	n, err := b.values.add([]byte(name))
	if err == nil {
		var v uint32
		if v, err = b.values.add(value); err == nil {
			b.storeXattr(i, xattr{name: n, nameLen: uint16(len(name)), value: v, valLen: uint16(len(value))})
			return nil
		}
	}
	return fmt.Errorf("setting extended attribute %q: %w", name, err)
}

func (b *Builder) checkXattr(i Inode, name string, value []byte) error {
	_, suffix, ok := splitXattr(name)
	switch {
	case !ok:
		return ErrXattrName
	case len(suffix) > maxXattrSuffix || bytes.IndexByte([]byte(suffix), 0) >= 0:
		return fmt.Errorf("a suffix has at most %d bytes and no NUL: %w", maxXattrSuffix, fs.ErrInvalid)
	case len(value) > maxXattrValue:
		return fmt.Errorf("a value of %d bytes, Linux allows %d: %w", len(value), maxXattrValue, fs.ErrInvalid)
	}
	body := xattrHeaderSize + xattrEntryLen(len(suffix), len(value))
	for e := b.inodes[i].xfirst; e != 0; e = b.xattrs[e-1].next {
		x := &b.xattrs[e-1]
		old := b.values.bytes(x.name, int(x.nameLen))
		if string(old) == name {
			continue
		}
		_, s, _ := splitXattr(old)
		body += xattrEntryLen(len(s), int(x.valLen))
	}
	if body > maxXattrBody {
		return fmt.Errorf("all attributes of the file take %d bytes, EROFS allows %d: %w", body, maxXattrBody, fs.ErrInvalid)
	}
	return nil
}

func (b *Builder) storeXattr(i Inode, x xattr) {
	n := &b.inodes[i]
	for e := n.xfirst; e != 0; e = b.xattrs[e-1].next {
		if b.xattrs[e-1].name == x.name { // interned: one offset per name
			b.xattrs[e-1].xattr = x
			return
		}
	}
	b.xattrs = append(b.xattrs, listedXattr{x, n.xfirst})
	n.xfirst = uint32(len(b.xattrs))
	n.xcount++
}

// internTable stores byte strings once. The same labels are on thousands of
// files.
type internTable struct {
	arena []byte
	spans []internSpan
	table []uint32 // span number + 1; open addressing
	seed  maphash.Seed
}

type internSpan struct{ off, len uint32 }

func (t *internTable) bytes(off uint32, n int) []byte { return t.arena[off : int(off)+n] }

// add returns the arena offset of p, which it copies there when it is new.
func (t *internTable) add(p []byte) (uint32, error) {
	if t.table == nil {
		t.table, t.seed = make([]uint32, 64), maphash.MakeSeed()
	}
	mask := uint64(len(t.table) - 1)
	h := maphash.Bytes(t.seed, p)
	for ; t.table[h&mask] != 0; h++ {
		s := t.spans[t.table[h&mask]-1]
		if int(s.len) == len(p) && bytes.Equal(t.bytes(s.off, len(p)), p) {
			return s.off, nil
		}
	}
	off := len(t.arena)
	if off+len(p) > math.MaxUint32 {
		return 0, errors.New("more than 4 GiB of extended attributes")
	}
	t.arena = append(t.arena, p...)
	t.spans = append(t.spans, internSpan{uint32(off), uint32(len(p))})
	t.table[h&mask] = uint32(len(t.spans))
	if 2*len(t.spans) > len(t.table) {
		t.grow()
	}
	return uint32(off), nil
}

func (t *internTable) grow() {
	t.table = make([]uint32, 4*len(t.table))
	mask := uint64(len(t.table) - 1)
	for k, s := range t.spans {
		h := maphash.Bytes(t.seed, t.bytes(s.off, int(s.len)))
		for t.table[h&mask] != 0 {
			h++
		}
		t.table[h&mask] = uint32(k + 1)
	}
}
