package erofs

import (
	"bytes"
	"fmt"
	"io/fs"
	"strings"
)

// cursor goes through the names of one layer's directory.
type cursor struct {
	layer      int
	next, last uint32 // dents of the layer
	name       []byte // of next
}

// open appends the names of a directory that is merged from dirs, the uppermost
// first, to the result. They get their inodes later.
func (m *merger) open(self Inode, dirs []source) openMerge {
	o := openMerge{self: self, first: uint32(len(m.t.dents)), pending: len(m.pending), dirs: len(m.dirs)}
	m.cursors = m.cursors[:0]
	for _, d := range dirs {
		n := &m.layers[d.layer].Tree.inodes[d.inode]
		if n.count > 0 {
			m.cursors = append(m.cursors, cursor{layer: d.layer, next: n.first, last: n.first + n.count})
			m.load(&m.cursors[len(m.cursors)-1])
		}
	}
	for k := len(m.cursors)/2 - 1; k >= 0; k-- {
		m.sink(k)
	}
	for len(m.cursors) > 0 {
		m.takeName()
	}
	o.last = uint32(len(m.t.dents))
	o.next = o.first
	m.t.inodes[self].first, m.t.inodes[self].count = o.first, o.last-o.first
	return o
}

// takeName takes the first name of all cursors from every layer that has it and
// enters what overlayfs makes of them.
func (m *merger) takeName() {
	name := m.cursors[0].name
	p := pendingName{first: len(m.dirs)}
	white, deeper := false, true
	for first := true; len(m.cursors) > 0 && bytes.Equal(m.cursors[0].name, name); first = false {
		c := &m.cursors[0]
		t := m.layers[c.layer].Tree
		d := t.dents[c.next]
		n := &t.inodes[d.inode]
		isDir := n.mode&modeType == modeDir
		if first {
			p.source = source{c.layer, d.inode}
			white = n.mode&modeType == modeChar && n.rdev == 0
			if !white {
				m.t.dents = append(m.t.dents, dirent{name: m.base[c.layer] + d.name, len: d.len})
			}
		}
		if deeper = deeper && isDir; deeper {
			m.dirs = append(m.dirs, source{c.layer, d.inode})
			deeper = !t.opaque(n)
		}
		m.advance()
	}
	if !white {
		p.count = len(m.dirs) - p.first
		m.pending = append(m.pending, p)
	}
}

// opaque reports whether a directory hides what is below it.
func (t *Tree) opaque(n *inode) bool {
	for _, x := range t.xattrs[n.xfirst : n.xfirst+uint32(n.xcount)] {
		if string(t.xattrName(x)) == XattrOpaque {
			return string(t.xattrValue(x)) == "y"
		}
	}
	return false
}

func (m *merger) load(c *cursor) {
	t := m.layers[c.layer].Tree
	c.name = t.nameOf(t.dents[c.next])
}

// advance moves the cursor at the top of the heap to its next name.
func (m *merger) advance() {
	c := &m.cursors[0]
	if c.next++; c.next < c.last {
		m.load(c)
	} else {
		last := len(m.cursors) - 1
		m.cursors[0] = m.cursors[last]
		m.cursors = m.cursors[:last]
	}
	m.sink(0)
}

// sink restores the heap below k: by name, and the uppermost layer first.
func (m *merger) sink(k int) {
	for {
		child := 2*k + 1
		if child >= len(m.cursors) {
			return
		}
		if child+1 < len(m.cursors) && m.cursors[child+1].before(&m.cursors[child]) {
			child++
		}
		if !m.cursors[child].before(&m.cursors[k]) {
			return
		}
		m.cursors[k], m.cursors[child] = m.cursors[child], m.cursors[k]
		k = child
	}
}

func (c *cursor) before(o *cursor) bool {
	if x := bytes.Compare(c.name, o.name); x != 0 {
		return x < 0
	}
	return c.layer > o.layer
}

// addInode copies an inode of a layer without its names.
func (m *merger) addInode(s source) error {
	l := &m.layers[s.layer]
	n := l.Tree.inodes[s.inode]
	xattrs := l.Tree.xattrs[n.xfirst : n.xfirst+uint32(n.xcount)]
	n.nlink = 1
	switch n.mode & modeType {
	case modeDir:
		n.nlink, n.parent = 2, RootInode
	case modeLink:
		n.first += m.base[s.layer]
	case modeReg:
		first := uint32(len(m.t.exts))
		for _, e := range l.Tree.Extents(s.inode) {
			if err := l.relocate(&e); err != nil {
				return fmt.Errorf("layer %d: %w", s.layer, err)
			}
			m.t.exts = append(m.t.exts, e)
		}
		n.first = first
	}
	n.xfirst, n.xcount = uint32(len(m.t.xattrs)), 0
	for _, x := range xattrs {
		if strings.HasPrefix(string(l.Tree.xattrName(x)), overlayPrefix) {
			continue
		}
		x.name += m.base[s.layer]
		x.value += m.base[s.layer]
		m.t.xattrs = append(m.t.xattrs, x)
		n.xcount++
	}
	m.t.inodes = append(m.t.inodes, n)
	return nil
}

// relocate moves an extent to the result's devices.
func (l *MergeLayer) relocate(e *Extent) error {
	if e.Addr == HoleAddr {
		e.Device = 0
		return nil
	}
	if int(e.Device) >= len(l.Devices) {
		return fmt.Errorf("a file on device %d, only %d were named: %w", e.Device, len(l.Devices), fs.ErrInvalid)
	}
	e.Device = l.Devices[e.Device]
	return nil
}
