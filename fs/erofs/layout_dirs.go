package erofs

import (
	"bytes"
	"slices"
)

var dot, dotdot = []byte("."), []byte("..")

// entries yields what a directory holds on disk, "." and ".." sorted among the
// other names: the kernel finds a name by binary search.
func (l *Layout) entries(dir Inode, yield func(name []byte, i Inode)) {
	t := l.t
	n := &t.inodes[dir]
	run := t.dents[n.first : n.first+n.count]
	name := func(d dirent) []byte { return t.arena[d.name : d.name+uint32(d.len)] }
	lower := func(want []byte) int {
		at, _ := slices.BinarySearchFunc(run, want, func(d dirent, w []byte) int {
			return bytes.Compare(name(d), w)
		})
		return at
	}
	one, two := lower(dot), lower(dotdot)
	for k := 0; k <= len(run); k++ {
		if k == one {
			yield(dot, dir)
		}
		if k == two {
			yield(dotdot, n.parent)
		}
		if k < len(run) {
			yield(name(run[k]), run[k].inode)
		}
	}
}

// dirSize is the length of a directory: whole blocks, each filled with as many
// entries as fit, and the last one to the end of its last name.
func (l *Layout) dirSize(dir Inode) int64 {
	var blocks, used int64
	l.entries(dir, func(name []byte, _ Inode) {
		need := int64(direntSize + len(name))
		if used+need > l.block {
			blocks++
			used = 0
		}
		used += need
	})
	return blocks*l.block + used
}

// dirBlocks encodes a directory block by block. Each block but the last is
// padded with NUL; emit's argument is reused.
func (l *Layout) dirBlocks(dir Inode, emit func(b []byte, last bool) error) error {
	e := dirEncoder{buf: make([]byte, l.block)}
	var err error
	flush := func(last bool) {
		if err == nil {
			err = emit(e.encode(last), last)
		}
		e.ents, e.names = e.ents[:0], e.names[:0]
	}
	l.entries(dir, func(name []byte, i Inode) {
		if (len(e.ents)+1)*direntSize+len(e.names)+len(name) > len(e.buf) {
			flush(false)
		}
		d := diskDirent{Nid: uint64(l.inodes[i].nid), NameOff: uint16(len(e.names)), Type: fileType(l.t.inodes[i].mode)}
		e.ents = append(e.ents, d)
		e.names = append(e.names, name...)
	})
	flush(true)
	return err
}

// dirEncoder gathers the entries of one block. Their NameOff counts from the
// first name until the number of entries is known.
type dirEncoder struct {
	buf   []byte
	ents  []diskDirent
	names []byte
}

func (e *dirEncoder) encode(last bool) []byte {
	base := len(e.ents) * direntSize
	for k, d := range e.ents {
		d.NameOff += uint16(base)
		d.put(e.buf[k*direntSize:])
	}
	n := base + copy(e.buf[base:], e.names)
	if last {
		return e.buf[:n]
	}
	clear(e.buf[n:])
	return e.buf
}
