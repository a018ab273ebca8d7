package fuseblock

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/fusesession"
	"github.com/lazyerofs/lazyerofs/fs/driver/lifetime"
)

// The one file of a connection: its name in the root, and its node id, which is
// the same for every server.
const (
	fileName = "data"
	fileNode = 2
)

// forever is how long the kernel may believe an attribute or a name: a layer
// does not change.
const forever = 10 * 365 * 24 * time.Hour

// Reasons for which a read is answered with an error without asking a layer.
var (
	errNotAdopted = errors.New("no one adopted the layer")
	errHollow     = errors.New("the layer said that the range is there, but it is not")
)

// file shows a layer's data as one file. It has no handles: OPEN is answered
// with ENOSYS, so that a successor has nothing to know about it.
type file struct {
	fuse.RawFileSystem
	driver  *Driver
	id      string
	session *fusesession.Session // set by Bind, before the first request
	view    atomic.Pointer[view] // nil: nobody adopted the layer
}

// view is a layer as reads want it.
type view struct {
	layer driver.Layer
	fd    int
	size  int64
}

func newFile(d *Driver, id string) *file {
	return &file{RawFileSystem: fuse.NewDefaultRawFileSystem(), driver: d, id: id}
}

// show makes the layer readable. Its data file must stay open until the session
// ends.
func (f *file) show(l driver.Layer) error {
	st, err := l.Data().Stat()
	if err != nil {
		return err
	}
	v := &view{layer: l, size: st.Size()}
	if err := lifetime.Control(l.Data(), func(fd int) error { v.fd = fd; return nil }); err != nil {
		return err
	}
	f.view.Store(v)
	return nil
}

// Bind implements fusesession.Binder.
func (f *file) Bind(s *fusesession.Session) { f.session = s }

// String names the file system.
func (f *file) String() string { return Name }

// Resident implements fusesession.ResidentReader: the hot path.
func (f *file) Resident(node uint64, off int64, n int) (int, int64, int, bool) {
	v := f.view.Load()
	if v == nil || node != fileNode {
		return 0, 0, 0, false
	}
	length := v.cut(off, n)
	if length > 0 && !v.layer.Resident(off, int64(length)) {
		return 0, 0, 0, false
	}
	return v.fd, off, length, true
}

// cut is how much of n bytes at off there is.
func (v *view) cut(off int64, n int) int {
	return int(max(0, min(int64(n), v.size-off)))
}

// Lookup finds the one file.
func (f *file) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if h.NodeId != fuse.FUSE_ROOT_ID || name != fileName {
		return fuse.ENOENT
	}
	if !f.attr(fileNode, &out.Attr) {
		return fuse.EIO
	}
	out.NodeId = fileNode
	out.SetEntryTimeout(forever)
	out.SetAttrTimeout(forever)
	return fuse.OK
}

// GetAttr describes the file and the root.
func (f *file) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	if !f.attr(in.NodeId, &out.Attr) {
		return fuse.EIO
	}
	out.SetTimeout(forever)
	return fuse.OK
}

func (f *file) attr(node uint64, a *fuse.Attr) bool {
	if node == fuse.FUSE_ROOT_ID {
		*a = fuse.Attr{Ino: node, Mode: unix.S_IFDIR | 0o500, Nlink: 2, Blksize: 4096}
		return true
	}
	v := f.view.Load()
	if v == nil || node != fileNode {
		return false
	}
	*a = fuse.Attr{
		Ino: node, Mode: unix.S_IFREG | 0o400, Nlink: 1, Blksize: 4096,
		Size: uint64(v.size), Blocks: uint64(v.size+511) / 512,
	}
	return true
}

// Open and Flush are not needed, and the kernel asks only once.
func (f *file) Open(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.ENOSYS }

// Flush is like Open.
func (f *file) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

// Access is left to the kernel.
func (f *file) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.ENOSYS }

// Read is for what Resident did not answer.
func (f *file) Read(cancel <-chan struct{}, in *fuse.ReadIn, _ []byte) (fuse.ReadResult, fuse.Status) {
	v := f.view.Load()
	if v == nil {
		return f.deny(in, errNotAdopted)
	}
	off := int64(in.Offset)
	n := v.cut(off, int(in.Size))
	if n == 0 {
		return fuse.ReadResultData(nil), fuse.OK
	}
	if v.layer.Resident(off, int64(n)) {
		f.driver.hits.Add(1)
		return fuse.ReadResultFd(uintptr(v.fd), off, n), fuse.OK
	}
	ctx, stop := fusesession.ReaderContext(f.session.Context(), cancel, in.Pid)
	err := v.layer.Ensure(ctx, off, int64(n))
	if stop() {
		return nil, fuse.EINTR // its reader was killed
	}
	if err == nil && !v.layer.Resident(off, int64(n)) {
		err = errHollow
	}
	if err != nil {
		return f.deny(in, err)
	}
	f.driver.misses.Add(1)
	return fuse.ReadResultFd(uintptr(v.fd), off, n), fuse.OK
}

func (f *file) deny(in *fuse.ReadIn, why error) (fuse.ReadResult, fuse.Status) {
	f.driver.denied.Add(1)
	f.driver.denials.Note(f.session.Context(), f.id, int64(in.Offset), int64(in.Size), why)
	return nil, fuse.Status(driver.Errno(why))
}

// OnUnmount is told of the end by the session, too.
func (f *file) OnUnmount() {}

var _ fuse.RawFileSystem = (*file)(nil)
