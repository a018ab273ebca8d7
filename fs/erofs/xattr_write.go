package erofs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/maphash"
	"math"
)

// xattrEntryLen is the length of an entry on disk.
func xattrEntryLen(suffix, value int) int {
	return alignUp(xattrEntrySize+suffix+value, xattrAlign)
}

// xattrPlan says which xattrs are stored once and referred to.
type xattrPlan struct {
	shared    []uint32 // by xattr number in the tree: offset/4 in the shared area + 1, or 0 for inline
	order     []uint32 // one xattr number for each entry of the shared area, in its order
	sharedLen int64
}

// planXattrs shares every xattr that takes less room so: one entry and an id of
// 4 bytes in each inode instead of an entry in each.
func (l *Layout) planXattrs() error {
	t := l.t
	if len(t.xattrs) == 0 {
		return nil
	}
	first, count := countXattrs(t)
	p := xattrPlan{shared: make([]uint32, len(t.xattrs))}
	for k := range t.inodes {
		n := &t.inodes[k]
		ids := 0
		for x := n.xfirst; x < n.xfirst+uint32(n.xcount); x++ {
			f := first[x]
			size := t.xattrEntryLen(t.xattrs[x])
			if count[f]*size <= size+4*count[f] || ids == maxXattrShared {
				continue
			}
			if p.shared[f] == 0 {
				if p.sharedLen/4 >= math.MaxUint32-1 {
					return errors.New("more than 16 GiB of shared extended attributes")
				}
				p.shared[f] = uint32(p.sharedLen/4) + 1
				p.sharedLen += size
				p.order = append(p.order, f)
			}
			p.shared[x] = p.shared[f]
			ids++
		}
	}
	l.xattrs = p
	return nil
}

// countXattrs returns for each xattr the first one equal to it, and for each
// such first one how many there are.
func countXattrs(t *Tree) (first []uint32, count []int64) {
	first, count = make([]uint32, len(t.xattrs)), make([]int64, len(t.xattrs))
	size := 64
	for size < 2*len(t.xattrs) {
		size *= 2
	}
	table, mask, seed := make([]uint32, size), uint64(size-1), maphash.MakeSeed()
	for k, x := range t.xattrs {
		name, value := t.xattrName(x), t.xattrValue(x)
		h := maphash.Bytes(seed, name) ^ maphash.Bytes(seed, value)*0x9E3779B97F4A7C15
		for ; ; h++ {
			e := table[h&mask]
			if e == 0 {
				table[h&mask] = uint32(k) + 1
				first[k] = uint32(k)
				break
			}
			if y := t.xattrs[e-1]; bytes.Equal(t.xattrName(y), name) && bytes.Equal(t.xattrValue(y), value) {
				first[k] = e - 1
				break
			}
		}
		count[first[k]]++
	}
	return first, count
}

func (t *Tree) xattrEntryLen(x xattr) int64 {
	_, suffix, _ := splitXattr(t.xattrName(x))
	return int64(xattrEntryLen(len(suffix), int(x.valLen)))
}

// bodyLen is the length of an inode's xattr body. There is no body without an
// attribute: the kernel refuses an inode with a bare header.
func (p *xattrPlan) bodyLen(t *Tree, n *inode) uint32 {
	if n.xcount == 0 {
		return 0
	}
	size := int64(xattrHeaderSize)
	for x := n.xfirst; x < n.xfirst+uint32(n.xcount); x++ {
		if p.shared[x] != 0 {
			size += 4
		} else {
			size += t.xattrEntryLen(t.xattrs[x])
		}
	}
	return uint32(size)
}

// appendBody encodes an inode's xattr body. base is the id of the first shared
// entry.
func (p *xattrPlan) appendBody(b []byte, t *Tree, n *inode, base uint32) []byte {
	if n.xcount == 0 {
		return b
	}
	head := len(b)
	filter := ^uint32(0)
	b = append(b, make([]byte, xattrHeaderSize)...)
	for x := n.xfirst; x < n.xfirst+uint32(n.xcount); x++ {
		index, suffix, _ := splitXattr(t.xattrName(t.xattrs[x]))
		filter &^= 1 << (xxh32(suffix, xattrFilterSeed+uint32(index)) & 31)
		if id := p.shared[x]; id != 0 {
			b = binary.LittleEndian.AppendUint32(b, base+id-1)
			b[head+4]++
		}
	}
	for x := n.xfirst; x < n.xfirst+uint32(n.xcount); x++ {
		if p.shared[x] == 0 {
			b = t.appendXattr(b, t.xattrs[x])
		}
	}
	binary.LittleEndian.PutUint32(b[head:], filter)
	return b
}

// appendXattr encodes one entry, padded to its alignment.
func (t *Tree) appendXattr(b []byte, x xattr) []byte {
	index, suffix, _ := splitXattr(t.xattrName(x))
	n := xattrEntrySize + len(suffix) + int(x.valLen)
	b = append(b, byte(len(suffix)), index)
	b = binary.LittleEndian.AppendUint16(b, x.valLen)
	b = append(b, suffix...)
	b = append(b, t.xattrValue(x)...)
	return append(b, make([]byte, alignUp(n, xattrAlign)-n)...)
}
