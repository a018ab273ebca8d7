package erofs

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
)

// overlayPrefix begins the names of overlayfs' own attributes, which it shows to
// nobody.
const overlayPrefix = "trusted.overlay."

// ErrDevices is returned by Merge for a layer whose files are on more than one
// device: MergeLayers is told where each of them comes to be.
var ErrDevices = errors.New("a layer on more than one device")

// MergeLayer is one layer of a merge.
type MergeLayer struct {
	// Tree is the layer as it was parsed or laid out: addresses on device 0 count
	// from the start of its image.
	Tree *Tree
	// Devices says, by device of the layer, which device of the result that is. It
	// is as long as the highest device of Tree's extents plus one.
	Devices []uint16
}

// Merge returns the file system that overlayfs shows of layers, bottom first, in
// one Tree. The data of layer k, counted from 0, is device k+1 of the result,
// with its addresses kept: a layer's files are all on its device 0, its own
// image, or all on its device 1, beside which the metadata was written. See
// MergeLayers.
func Merge(layers ...*Tree) (*Tree, error) {
	all := make([]MergeLayer, len(layers))
	for k, t := range layers {
		if k >= math.MaxUint16-1 {
			return nil, fmt.Errorf("merging %d layers, EROFS has %d devices: %w", len(layers), math.MaxUint16-1, fs.ErrInvalid)
		}
		on, err := soleDevice(t)
		if err != nil {
			return nil, fmt.Errorf("merging layer %d: %w", k, err)
		}
		all[k] = MergeLayer{Tree: t, Devices: make([]uint16, on+1)}
		all[k].Devices[on] = uint16(k + 1)
	}
	return MergeLayers(all)
}

// soleDevice returns the one device that t's files are on.
func soleDevice(t *Tree) (uint16, error) {
	on := -1
	for k := range t.inodes {
		for _, e := range t.Extents(Inode(k)) {
			if e.Addr == HoleAddr {
				continue
			}
			if on >= 0 && on != int(e.Device) {
				return 0, fmt.Errorf("files on device %d and on device %d: %w", on, e.Device, ErrDevices)
			}
			on = int(e.Device)
		}
	}
	if on > 1 {
		return 0, fmt.Errorf("files on device %d: %w", on, ErrDevices)
	}
	return uint16(max(on, 0)), nil
}

// MergeLayers merges layers, bottom first, as overlayfs does with them as its
// lower directories (Documentation/filesystems/overlayfs.rst): the uppermost
// entry of a name counts; a whiteout hides what is below it; directories above
// each other become one with the attributes of the uppermost, down to the first
// that is marked opaque or lies on something else. The root of a layer is merged
// even when it is marked opaque, because overlayfs does not look there. Neither
// whiteouts nor attributes of overlayfs' own are in the result.
//
// What overlayfs cannot do: hard links stay together, by layer and inode, and
// their count is that of the names that are left; a merged directory has the link
// count 2 + subdirectories.
//
// It takes time in proportion to all names and at most the memory of all layers
// together, which may be dropped afterwards. Inodes are numbered in the order of
// their first paths.
func MergeLayers(layers []MergeLayer) (*Tree, error) {
	m, err := newMerger(layers)
	if err == nil {
		err = m.run()
	}
	if err != nil {
		return nil, fmt.Errorf("merging %d layers: %w", len(layers), err)
	}
	return &m.t, nil
}

// source is an inode of one of the layers.
type source struct {
	layer int
	inode Inode
}

// merger walks all layers at once, depth first. What it knows of the directories
// on its way is on stacks that shrink again.
type merger struct {
	layers []MergeLayer
	base   []uint32  // where each layer's arena is in the result's
	seen   [][]Inode // by layer and inode: the number in the result; 0 not yet
	t      Tree

	pending []pendingName // of the open directories
	dirs    []source      // what the pending directories are merged from
	cursors []cursor      // heap
}

// pendingName is an entry whose inode has no number yet. dirs[first:first+count]
// are its directories, the uppermost first; count is 0 for what is no directory.
type pendingName struct {
	source
	first, count int
}

// openMerge is a directory of the result whose children are being numbered.
type openMerge struct {
	self              Inode
	first, next, last uint32 // dents
	pending, dirs     int    // lengths of the stacks without it
}

func newMerger(layers []MergeLayer) (*merger, error) {
	if len(layers) == 0 {
		return nil, fmt.Errorf("no layer: %w", fs.ErrInvalid)
	}
	m := &merger{layers: layers, base: make([]uint32, len(layers)), seen: make([][]Inode, len(layers))}
	var arena, inodes, dents, exts, xattrs int
	for k, l := range layers {
		m.base[k] = uint32(arena)
		m.seen[k] = make([]Inode, len(l.Tree.inodes))
		inodes, dents, xattrs = inodes+len(l.Tree.inodes), dents+len(l.Tree.dents), xattrs+len(l.Tree.xattrs)
		exts += len(l.Tree.exts)
		if arena += len(l.Tree.arena); arena > math.MaxUint32 {
			return nil, fmt.Errorf("more than 4 GiB of names, link targets and attributes: %w", fs.ErrInvalid)
		}
	}
	if max(inodes, dents, exts, xattrs) > math.MaxUint32 {
		return nil, fmt.Errorf("more than 32 bits can number: %w", fs.ErrInvalid)
	}
	// Whole arenas: a value that many inodes share stays shared, and offsets only
	// move.
	m.t.arena = make([]byte, 0, arena)
	for _, l := range layers {
		m.t.arena = append(m.t.arena, l.Tree.arena...)
	}
	m.t.inodes, m.t.dents = make([]inode, 0, inodes), make([]dirent, 0, dents)
	m.t.exts, m.t.xattrs = make([]Extent, 0, exts), make([]xattr, 0, xattrs)
	return m, nil
}

func (m *merger) run() error {
	for k := len(m.layers) - 1; k >= 0; k-- {
		m.dirs = append(m.dirs, source{k, RootInode})
	}
	if err := m.addInode(m.dirs[0]); err != nil {
		return err
	}
	stack := []openMerge{m.open(RootInode, m.dirs)}
	for len(stack) > 0 {
		top := &stack[len(stack)-1]
		if top.next == top.last {
			m.pending = m.pending[:top.pending]
			m.dirs = m.dirs[:top.dirs]
			stack = stack[:len(stack)-1]
			continue
		}
		p := m.pending[top.pending+int(top.next-top.first)]
		d := &m.t.dents[top.next]
		top.next++
		if i := m.seen[p.layer][p.inode]; i != 0 { // another name; the root is nobody's child
			d.inode = i
			m.t.inodes[i].nlink++
			continue
		}
		d.inode = Inode(len(m.t.inodes))
		m.seen[p.layer][p.inode] = d.inode
		if err := m.addInode(p.source); err != nil {
			return err
		}
		if p.count > 0 {
			m.t.inodes[d.inode].parent = top.self
			m.t.inodes[top.self].nlink++
			stack = append(stack, m.open(d.inode, m.dirs[p.first:p.first+p.count]))
		}
	}
	return nil
}
