package fusetree

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// forever is how long the kernel may believe a name, an attribute or the absence
// of a name: the tree never changes. The kernel cuts it to what it can count.
const forever = 100 * 365 * 24 * time.Hour

// blockSize is what stat(2) and statfs(2) call a block of the tree, in bytes.
const blockSize = 4096

// counters are what Stats reports, over all mounts of a driver.
type counters struct {
	hits, misses, denied atomic.Uint64
	denials              *driver.Denials
}

func newCounters() *counters { return &counters{denials: driver.NewDenials()} }

// tree serves a Tree. The kernel knows an inode by its number plus one, so that
// the root is 1: nothing is kept of what it has looked up, FORGET means nothing,
// and a successor that parses the same metadata serves what it knows.
//
// What it has no method for is answered with ENOSYS, which the kernel remembers.
type tree struct {
	fuse.RawFileSystem
	t *erofs.Tree
	// layers holds the data of the extents by device; a tree of one layer has it
	// on device 0 or on device 1, as erofs.Layout wrote it.
	layers []driver.Layer
	blocks uint64 // of all layers, for statfs
	fds    []int  // of the layers' data files
	stats  *counters
	// Set by Bind, before the first request.
	opens   bool // the kernel does not remember ENOSYS for an open
	context func() context.Context
}

func newTree(t *erofs.Tree, layers []driver.Layer, stats *counters) (*tree, error) {
	s := &tree{
		RawFileSystem: fuse.NewDefaultRawFileSystem(), t: t, layers: layers, fds: make([]int, len(layers)),
		stats: stats, context: context.Background,
	}
	counted := map[driver.Layer]bool{}
	for k, l := range layers {
		if l == nil {
			continue
		}
		st, err := l.Data().Stat()
		if err != nil {
			return nil, fmt.Errorf("looking at the data of layer %s: %w", l.ID(), err)
		}
		if s.fds[k], err = descriptor(l.Data()); err != nil {
			return nil, fmt.Errorf("looking at the data of layer %s: %w", l.ID(), err)
		}
		if !counted[l] {
			counted[l] = true
			s.blocks += uint64(st.Size()+blockSize-1) / blockSize
		}
	}
	return s, nil
}

// descriptor returns the number of f, whose mode stays as it is. f must stay open.
func descriptor(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	n := -1
	err = raw.Control(func(fd uintptr) { n = int(fd) })
	return n, err
}

// String names the file system in go-fuse's messages.
func (s *tree) String() string { return "lazyerofs" }

// bind learns whether the kernel remembers that it need not send opens: not so
// before Linux 3.16 for files and 5.1 for directories.
func (s *tree) bind(agreed uint64, ctx func() context.Context) {
	const flags = fuse.CAP_NO_OPEN_SUPPORT | fuse.CAP_NO_OPENDIR_SUPPORT
	s.opens, s.context = agreed&flags != flags, ctx
}

// inode returns the inode that the kernel knows as node.
func (s *tree) inode(node uint64) (erofs.Inode, bool) {
	return erofs.Inode(node - 1), node-1 < uint64(s.t.Len())
}

// Lookup answers with the inode of a name, or that there is none: either holds
// for ever.
func (s *tree) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	dir, ok := s.inode(h.NodeId)
	if !ok {
		return fuse.Status(unix.ESTALE)
	}
	i, ok := s.t.Lookup(dir, name)
	if !ok {
		out.SetEntryTimeout(forever) // node 0: a negative entry
		return fuse.OK
	}
	s.entry(i, out)
	return fuse.OK
}

func (s *tree) entry(i erofs.Inode, out *fuse.EntryOut) {
	out.NodeId, out.Generation = uint64(i)+1, 1
	out.SetEntryTimeout(forever)
	out.SetAttrTimeout(forever)
	s.attr(i, &out.Attr)
}

// attr fills in what stat(2) reports. A device number is in the same encoding on
// both sides (new_encode_dev in include/linux/kdev_t.h).
func (s *tree) attr(i erofs.Inode, out *fuse.Attr) {
	a := s.t.Attr(i)
	out.Ino, out.Size = uint64(i)+1, uint64(a.Size)
	for _, e := range s.t.Extents(i) {
		if e.Addr != erofs.HoleAddr {
			out.Blocks += uint64(e.Len+511) / 512
		}
	}
	out.Mtime, out.Mtimensec = uint64(a.Mtime), a.MtimeNsec
	out.Atime, out.Atimensec = out.Mtime, out.Mtimensec
	out.Ctime, out.Ctimensec = out.Mtime, out.Mtimensec
	out.Mode, out.Nlink, out.Rdev, out.Blksize = uint32(a.Mode), s.t.Nlink(i), a.Rdev, blockSize
	out.Owner = fuse.Owner{Uid: a.UID, Gid: a.GID}
}

// GetAttr answers with the attributes of an inode.
func (s *tree) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	i, ok := s.inode(in.NodeId)
	if !ok {
		return fuse.Status(unix.ESTALE)
	}
	out.SetTimeout(forever)
	s.attr(i, &out.Attr)
	return fuse.OK
}

// Readlink answers with the target of a symbolic link.
func (s *tree) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	i, ok := s.inode(h.NodeId)
	if !ok {
		return nil, fuse.Status(unix.ESTALE)
	}
	to := s.t.Target(i)
	if to == nil {
		return nil, fuse.EINVAL
	}
	return to, fuse.OK
}

// GetXAttr answers with the value of an extended attribute, or how long it is.
func (s *tree) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	i, ok := s.inode(h.NodeId)
	if !ok {
		return 0, fuse.Status(unix.ESTALE)
	}
	value, ok := s.t.Xattr(i, name)
	switch {
	case !ok:
		return 0, fuse.ENOATTR
	case len(value) > len(dest):
		return uint32(len(value)), fuse.ERANGE
	}
	return uint32(copy(dest, value)), fuse.OK
}

// ListXAttr answers with the names of all extended attributes, those of overlayfs
// included: one layer is shown as it is.
func (s *tree) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	i, ok := s.inode(h.NodeId)
	if !ok {
		return 0, fuse.Status(unix.ESTALE)
	}
	n := 0
	for name := range s.t.Xattrs(i) {
		if n+len(name) < len(dest) {
			copy(dest[n:], name)
			dest[n+len(name)] = 0
		}
		n += len(name) + 1
	}
	if n > len(dest) {
		return uint32(n), fuse.ERANGE
	}
	return uint32(n), fuse.OK
}

// StatFs answers with the size of all layers.
func (s *tree) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	out.Blocks, out.Files = s.blocks, uint64(s.t.Len())
	out.Bsize, out.Frsize, out.NameLen = blockSize, blockSize, 255
	return fuse.OK
}

// Open is not needed: no file has a state here. Told so, the kernel opens files
// by itself and keeps what it has read of them (FOPEN_KEEP_CACHE).
func (s *tree) Open(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if !s.opens {
		return fuse.ENOSYS
	}
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

// OpenDir is not needed either; the kernel keeps what it has listed.
func (s *tree) OpenDir(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if !s.opens {
		return fuse.ENOSYS
	}
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_CACHE_DIR
	return fuse.OK
}

// Flush has nothing to flush, and need not be sent again.
func (s *tree) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

// dots is how many entries of a listing are no names of the Tree.
const dots = 2

// list gives a listing from in.Offset on to add until that has no more room. The
// offset of an entry is its place, so that a listing goes on on its own.
func (s *tree) list(in *fuse.ReadIn, add func(fuse.DirEntry, erofs.Inode) bool) fuse.Status {
	dir, ok := s.inode(in.NodeId)
	if !ok {
		return fuse.Status(unix.ESTALE)
	}
	if in.Offset >= uint64(s.t.Len())*2+dots { // more than there can be names in it
		return fuse.OK
	}
	for k := int(in.Offset); ; k++ {
		e := fuse.DirEntry{Off: uint64(k) + 1}
		i := dir
		switch k {
		case 0:
			e.Name = "."
		case 1:
			e.Name = ".."
			i = s.t.Parent(dir)
		default:
			name, child, ok := s.t.Entry(dir, k-dots)
			if !ok {
				return fuse.OK
			}
			i = child
			// go-fuse copies it; the bytes are the Tree's, which never change.
			e.Name = unsafe.String(unsafe.SliceData(name), len(name))
		}
		e.Ino, e.Mode = uint64(i)+1, uint32(s.t.Attr(i).Mode)
		if !add(e, i) {
			return fuse.OK
		}
	}
}

// ReadDir lists names.
func (s *tree) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return s.list(in, func(e fuse.DirEntry, _ erofs.Inode) bool { return out.AddDirEntry(e) })
}

// ReadDirPlus lists names together with what a lookup of each would answer.
func (s *tree) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return s.list(in, func(e fuse.DirEntry, i erofs.Inode) bool {
		entry := out.AddDirLookupEntry(e)
		if entry != nil && e.Off > dots { // "." and ".." must not be looked up
			s.entry(i, entry)
		}
		return entry != nil
	})
}
