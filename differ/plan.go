package differ

import (
	"slices"

	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// piece is one chunk of file data in the order of the image: one of a big file, or
// small files that share a chunk.
type piece struct {
	rec      int // record of the big file; -1 for a shared chunk
	from, to int // number of the chunk in the file; range in plan.smalls
	meta     bool
}

// plan is the data area: what comes where.
type plan struct {
	pieces   []piece
	smalls   []int // records, padded to the block size when they are placed
	size     int64 // length of the data area in bytes
	prefetch int   // the first so many pieces hold the files of Config.First
}

// planner lays file data out. Its addresses count from the start of the data
// area.
type planner struct {
	plan
	data *catalog
	tree *erofs.Tree
	from int           // smalls[from:] wait in the open shared chunk
	fill int64         // its length so far
	at   []erofs.Inode // whose files they are
	bigs []erofs.Inode // placed behind the open shared chunk
	ext  []erofs.Extent
}

// planData decides the order of all file data and tells the tree: first the
// files whose records are listed, then the others by their first path, which is
// the order of inode numbers.
func planData(t *erofs.Tree, data *catalog, first []int) *plan {
	p := &planner{data: data, tree: t}
	front := inodesOf(t, first)
	done := make(map[erofs.Inode]bool, len(front))
	for _, i := range front {
		p.add(i)
		done[i] = true
	}
	p.cut()
	p.prefetch = len(p.pieces)
	for k := range t.Len() {
		if i := erofs.Inode(k); len(t.Extents(i)) > 0 && !done[i] {
			p.add(i)
		}
	}
	p.cut()
	return &p.plan
}

// inodesOf returns the inodes to which records belong, in the order of records.
func inodesOf(t *erofs.Tree, records []int) []erofs.Inode {
	if len(records) == 0 {
		return nil
	}
	byRecord := make(map[int]erofs.Inode, len(records))
	for _, r := range records {
		byRecord[r] = erofs.RootInode // no file has this inode
	}
	for k := range t.Len() {
		if e := t.Extents(erofs.Inode(k)); len(e) > 0 {
			if _, ok := byRecord[recordOf(e)]; ok {
				byRecord[recordOf(e)] = erofs.Inode(k)
			}
		}
	}
	var out []erofs.Inode
	for _, r := range records {
		if i := byRecord[r]; i != erofs.RootInode {
			out = append(out, i)
			byRecord[r] = erofs.RootInode
		}
	}
	return out
}

// add places a file. A big one waits until the open shared chunk is full, so
// that shared chunks do not end early wherever a big file lies between small
// ones.
func (p *planner) add(i erofs.Inode) {
	k := recordOf(p.tree.Extents(i))
	rec := &p.data.records[k]
	if rec.big && len(p.at) == 0 {
		p.placeBig(i)
		return
	}
	if rec.big {
		p.bigs = append(p.bigs, i)
		return
	}
	n := alignUp(rec.size)
	if p.fill+n > p.data.chunkSize {
		p.cut()
	}
	p.smalls = append(p.smalls, k)
	p.at = append(p.at, i)
	p.fill += n
}

// cut ends the open shared chunk and places it and the big files that waited.
func (p *planner) cut() {
	if len(p.at) > 0 {
		p.pieces = append(p.pieces, piece{rec: -1, from: p.from, to: len(p.smalls)})
		for k, i := range p.at {
			size := p.data.records[p.smalls[p.from+k]].size
			p.tree.SetExtents(i, []erofs.Extent{{Len: size, Addr: p.size}})
			p.size += alignUp(size)
		}
	}
	p.from, p.fill, p.at = len(p.smalls), 0, p.at[:0]
	for _, i := range p.bigs {
		p.placeBig(i)
	}
	p.bigs = p.bigs[:0]
}

func (p *planner) placeBig(i erofs.Inode) {
	r := recordOf(p.tree.Extents(i))
	rec := &p.data.records[r]
	p.ext = extentsOf(p.ext[:0], p.data.runs[rec.run:rec.run+rec.runs], rec.size, p.size)
	p.tree.SetExtents(i, slices.Clone(p.ext))
	for k := range p.data.chunks(rec) {
		p.pieces = append(p.pieces, piece{rec: r, from: k})
	}
	p.size += alignUp(rec.stored)
}

// extentsOf appends to dst the extents of a file of which runs are stored from
// addr on, one behind the other, and the rest are holes.
func extentsOf(dst []erofs.Extent, runs []run, size, addr int64) []erofs.Extent {
	var off int64
	for _, r := range runs {
		if r.off > off {
			dst = append(dst, erofs.Extent{Off: off, Len: r.off - off, Addr: erofs.HoleAddr})
		}
		dst = append(dst, erofs.Extent{Off: r.off, Len: r.len, Addr: addr})
		addr += r.len
		off = r.off + r.len
	}
	if off < size {
		dst = append(dst, erofs.Extent{Off: off, Len: size - off, Addr: erofs.HoleAddr})
	}
	return dst
}

// recordsAt returns the records of the regular files at paths, in order. A path
// that leads to none is passed over.
func (t *ingest) recordsAt(paths []string) []int {
	if len(paths) == 0 {
		return nil
	}
	byOwner := make(map[erofs.Inode]int, len(t.owners))
	for r, i := range t.owners {
		byOwner[i] = r
	}
	var out []int
	for _, name := range paths {
		p, err := cleanName(name)
		if err == nil {
			p, err = t.resolve(p, true)
		}
		if err != nil {
			continue
		}
		if i, ok := t.b.Lookup(p); ok {
			if r, ok := byOwner[i]; ok {
				out = append(out, r)
			}
		}
	}
	return out
}
