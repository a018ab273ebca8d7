package fusetree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/containerd/log"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

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
	trouble              rate.Sometimes // with metadata
}

func newCounters() *counters {
	return &counters{denials: driver.NewDenials(), trouble: rate.Sometimes{First: 10, Interval: time.Second}}
}

// tree serves an image from its metadata, of which it keeps nothing but where the
// files are that were read last. The kernel knows an inode by its number on disk:
// nothing is kept of what it has looked up, FORGET means nothing, and a successor
// that has the same metadata serves what it knows.
//
// What it has no method for is answered with ENOSYS, which the kernel remembers.
type tree struct {
	fuse.RawFileSystem
	m *erofs.Image
	// layers holds the data of the extents by device; a tree of one layer has it
	// on device 0 or on device 1, as erofs.Layout wrote it.
	layers []driver.Layer
	blocks uint64 // of all layers, for statfs
	fds    []int  // of the layers' data files
	acl    bool   // some inode has an access control list
	stats  *counters
	files  [recentFiles]atomic.Pointer[recentFile]
	own    *os.File // the metadata, when it is no layer's
	// Set by Bind, before the first request and before there is an agreement.
	agreed  func() uint64 // what the kernel can, and was asked to do
	context func() context.Context
}

// newTree serves what is in meta, a parsed image.
func newTree(p *erofs.Parsed, meta io.ReaderAt, layers []driver.Layer, stats *counters) (*tree, error) {
	s := &tree{
		RawFileSystem: fuse.NewDefaultRawFileSystem(), m: p.Image(meta), layers: layers, fds: make([]int, len(layers)),
		acl: hasACL(p.Tree), stats: stats, agreed: func() uint64 { return 0 }, context: context.Background,
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

// OnUnmount comes after the last request.
func (s *tree) OnUnmount() { s.close() }

// close gives the metadata back. It may be called again.
func (s *tree) close() {
	if s.own != nil {
		_ = s.own.Close() // a memfd has nothing to lose
	}
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

// opens reports whether the kernel does not remember that it need not send opens:
// not so before Linux 3.16 for files and 5.1 for directories.
func (s *tree) opens() bool {
	const flags = fuse.CAP_NO_OPEN_SUPPORT | fuse.CAP_NO_OPENDIR_SUPPORT
	return s.agreed()&flags != flags
}

// The kernel knows the root as 1 and any other inode by its number plus 2: every
// number may be one of an inode, and 0 is none of the kernel's.
const nodeBase = 2

// nid returns the inode that the kernel knows as node.
func (s *tree) nid(node uint64) (erofs.Nid, bool) {
	if node == fuse.FUSE_ROOT_ID {
		return s.m.Root(), true
	}
	return erofs.Nid(node - nodeBase), node-nodeBase <= math.MaxUint32
}

func (s *tree) node(nid erofs.Nid) uint64 {
	if nid == s.m.Root() {
		return fuse.FUSE_ROOT_ID
	}
	return uint64(nid) + nodeBase
}

// stale is the answer to an inode number that the kernel was never told, and when
// the metadata is not what was parsed.
const stale = fuse.Status(unix.ESTALE)

// failed answers a request whose metadata could not be read.
func (s *tree) failed(err error) fuse.Status {
	s.stats.trouble.Do(func() { log.G(s.context()).WithError(err).Error("fusetree: looking at metadata") })
	if errors.Is(err, erofs.ErrChanged) {
		return stale
	}
	return fuse.Status(driver.Errno(err))
}

// Lookup answers with the inode of a name, or that there is none: either holds
// for ever.
func (s *tree) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	dir, ok := s.nid(h.NodeId)
	if !ok {
		return stale
	}
	i, ok, err := s.m.Lookup(dir, name)
	if err != nil {
		return s.failed(err)
	}
	if !ok {
		out.SetEntryTimeout(forever) // node 0: a negative entry
		return fuse.OK
	}
	st, err := s.m.Stat(i)
	if err != nil {
		return s.failed(err)
	}
	s.entry(i, &st, out)
	return fuse.OK
}

func (s *tree) entry(i erofs.Nid, st *erofs.Stat, out *fuse.EntryOut) {
	out.NodeId, out.Generation = s.node(i), 1
	out.SetEntryTimeout(forever)
	out.SetAttrTimeout(forever)
	s.attr(i, st, &out.Attr)
}

// attr fills in what stat(2) reports. A device number is in the same encoding on
// both sides (new_encode_dev in include/linux/kdev_t.h).
func (s *tree) attr(i erofs.Nid, st *erofs.Stat, out *fuse.Attr) {
	out.Ino, out.Size, out.Blocks = s.node(i), uint64(st.Size), st.Blocks
	out.Mtime, out.Mtimensec = uint64(st.Mtime), st.MtimeNsec
	out.Atime, out.Atimensec = out.Mtime, out.Mtimensec
	out.Ctime, out.Ctimensec = out.Mtime, out.Mtimensec
	out.Mode, out.Nlink, out.Rdev, out.Blksize = uint32(st.Mode), st.Nlink, st.Rdev, blockSize
	out.Owner = fuse.Owner{Uid: st.UID, Gid: st.GID}
}

// GetAttr answers with the attributes of an inode.
func (s *tree) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	i, ok := s.nid(in.NodeId)
	if !ok {
		return stale
	}
	st, err := s.m.Stat(i)
	if err != nil {
		return s.failed(err)
	}
	out.SetTimeout(forever)
	s.attr(i, &st, &out.Attr)
	return fuse.OK
}

// Readlink answers with the target of a symbolic link.
func (s *tree) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	i, ok := s.nid(h.NodeId)
	if !ok {
		return nil, stale
	}
	to, err := s.m.Target(i)
	switch {
	case err != nil:
		return nil, s.failed(err)
	case to == nil:
		return nil, fuse.EINVAL
	}
	return to, fuse.OK
}

// GetXAttr answers with the value of an extended attribute, or how long it is.
func (s *tree) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	i, ok := s.nid(h.NodeId)
	if !ok {
		return 0, stale
	}
	value, ok, err := s.m.Xattr(i, name)
	switch {
	case err != nil:
		return 0, s.failed(err)
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
	i, ok := s.nid(h.NodeId)
	if !ok {
		return 0, stale
	}
	n := 0
	err := s.m.Xattrs(i, func(name []byte) {
		if n+len(name) < len(dest) {
			copy(dest[n:], name)
			dest[n+len(name)] = 0
		}
		n += len(name) + 1
	})
	switch {
	case err != nil:
		return 0, s.failed(err)
	case n > len(dest):
		return uint32(n), fuse.ERANGE
	}
	return uint32(n), fuse.OK
}

// StatFs answers with the size of all layers.
func (s *tree) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	out.Blocks, out.Files = s.blocks, s.m.Inodes()
	out.Bsize, out.Frsize, out.NameLen = blockSize, blockSize, 255
	return fuse.OK
}

// Open is not needed: no file has a state here. Told so, the kernel opens files
// by itself and keeps what it has read of them (FOPEN_KEEP_CACHE).
func (s *tree) Open(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if !s.opens() {
		return fuse.ENOSYS
	}
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

// OpenDir is not needed either; the kernel keeps what it has listed.
func (s *tree) OpenDir(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if !s.opens() {
		return fuse.ENOSYS
	}
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_CACHE_DIR
	return fuse.OK
}

// Flush has nothing to flush, and need not be sent again.
func (s *tree) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

// list gives a listing from in.Offset on to add until that has no more room. The
// offset of an entry is its place on disk, so that a listing goes on on its own.
func (s *tree) list(in *fuse.ReadIn, stat bool, add func(fuse.DirEntry, *erofs.Stat) bool) fuse.Status {
	dir, ok := s.nid(in.NodeId)
	if !ok {
		return stale
	}
	err := s.m.List(dir, int64(in.Offset), stat, func(d erofs.Dirent, st erofs.Stat) bool {
		return add(fuse.DirEntry{
			// go-fuse copies it.
			Name: unsafe.String(unsafe.SliceData(d.Name), len(d.Name)),
			Ino:  s.node(d.Nid), Mode: uint32(d.Type), Off: uint64(d.Next),
		}, &st)
	})
	if err != nil {
		return s.failed(err)
	}
	return fuse.OK
}

// ReadDir lists names.
func (s *tree) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return s.list(in, false, func(e fuse.DirEntry, _ *erofs.Stat) bool { return out.AddDirEntry(e) })
}

// ReadDirPlus lists names together with what a lookup of each would answer.
func (s *tree) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return s.list(in, true, func(e fuse.DirEntry, st *erofs.Stat) bool {
		entry := out.AddDirLookupEntry(e)
		if entry != nil && st.Mode != 0 { // not "." and ".."
			i, _ := s.nid(e.Ino)
			s.entry(i, st, entry)
		}
		return entry != nil
	})
}
