package fusetree

import (
	"fmt"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/fusesession"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// recentFiles is how many files a tree keeps the places of: those that were read
// last, so that reading on costs no look at the metadata.
const recentFiles = 32

// recentFile is a file by its number.
type recentFile struct {
	nid erofs.Nid
	erofs.File
}

// file finds where the bytes of a file are.
func (s *tree) file(nid erofs.Nid) (*erofs.File, error) {
	slot := &s.files[nid%recentFiles]
	if r := slot.Load(); r != nil && r.nid == nid {
		return &r.File, nil
	}
	f, err := s.m.File(nid)
	if err != nil {
		return nil, err
	}
	r := &recentFile{nid, f}
	slot.Store(r)
	return &r.File, nil
}

// Read answers with file data; holes are zeros. It reads whole ranges or fails:
// the kernel takes a short answer for the end of the file.
func (s *tree) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	nid, ok := s.nid(in.NodeId)
	if !ok {
		return nil, stale
	}
	f, err := s.file(nid)
	if err != nil {
		return nil, s.failed(err)
	}
	off := int64(in.Offset)
	if off < 0 || off >= f.Size {
		return fuse.ReadResultData(nil), fuse.OK
	}
	buf = buf[:min(int64(len(buf)), f.Size-off)]
	missed := false
	for p := buf; len(p) > 0; {
		n, fetched, err := s.readExtent(cancel, in.Pid, f, p, off)
		if err != nil {
			s.stats.denied.Add(1)
			return nil, fuse.Status(driver.Errno(err))
		}
		missed = missed || fetched
		p, off = p[n:], off+int64(n)
	}
	if missed {
		s.stats.misses.Add(1)
	} else {
		s.stats.hits.Add(1)
	}
	return fuse.ReadResultData(buf), fuse.OK
}

// readExtent reads what of p, at byte off of a file, is in one extent. missed says
// that it was not resident.
func (s *tree) readExtent(cancel <-chan struct{}, pid uint32, f *erofs.File, p []byte, off int64) (n int, missed bool, err error) {
	e, err := s.m.Extent(f, off, int64(len(p)))
	if err != nil {
		_ = s.failed(err) // who reads gets EIO
		return 0, false, err
	}
	p = p[:min(int64(len(p)), e.Off+e.Len-off)]
	if e.Addr == erofs.HoleAddr {
		clear(p)
		return len(p), false, nil
	}
	l, at := s.layers[e.Device], e.Addr+off-e.Off
	if !l.Resident(at, int64(len(p))) {
		missed = true
		if err := s.fetch(cancel, pid, l, at, int64(len(p))); err != nil {
			s.stats.denials.Note(s.context(), l.ID(), at, int64(len(p)), err)
			return 0, true, err
		}
	}
	if _, err := l.Data().ReadAt(p, at); err != nil {
		return 0, missed, fmt.Errorf("reading the data file of layer %s: %w", l.ID(), err)
	}
	return len(p), missed, nil
}

// Resident says where the answer to a read is, when it is one run of a data file
// and there. It takes no lock and, of a file that was read before, allocates
// nothing.
func (s *tree) Resident(node uint64, off int64, n int) (fd int, at int64, length int, ok bool) {
	nid, ok := s.nid(node)
	if !ok || n <= 0 {
		return 0, 0, 0, false
	}
	f, err := s.file(nid)
	if err != nil || off < 0 || off >= f.Size {
		return 0, 0, 0, false
	}
	length = int(min(int64(n), f.Size-off))
	e, err := s.m.Extent(f, off, int64(length))
	if err != nil || e.Addr == erofs.HoleAddr || off+int64(length) > e.Off+e.Len {
		return 0, 0, 0, false
	}
	at = e.Addr + off - e.Off
	if !s.layers[e.Device].Resident(at, int64(length)) {
		return 0, 0, 0, false
	}
	s.stats.hits.Add(1)
	return s.fds[e.Device], at, length, true
}

// fetch waits for a range of a layer. The wait ends early when the session
// cannot wait any longer, or when the reader is being killed: nobody else would
// see that error.
//
// An interrupt alone is no reason, since the kernel sends one for any signal: a
// read of a file that gives EINTR, or a page that is not there, breaks programs
// which rightly expect neither.
func (s *tree) fetch(cancel <-chan struct{}, pid uint32, l driver.Layer, addr, n int64) error {
	ctx, stop := fusesession.ReaderContext(s.context(), cancel, pid)
	defer stop()
	return l.Ensure(ctx, addr, n)
}

// Lseek finds data and holes. The kernel asks for nothing else.
func (s *tree) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	nid, ok := s.nid(in.NodeId)
	if !ok {
		return stale
	}
	f, err := s.file(nid)
	if err != nil {
		return s.failed(err)
	}
	off, hole := int64(in.Offset), in.Whence == unix.SEEK_HOLE
	if off < 0 || off >= f.Size {
		return fuse.Status(unix.ENXIO)
	}
	if !hole && in.Whence != unix.SEEK_DATA {
		return fuse.EINVAL
	}
	at, ok, err := s.m.Seek(f, off, hole)
	switch {
	case err != nil:
		return s.failed(err)
	case ok:
		out.Offset = uint64(at)
	case hole:
		out.Offset = uint64(f.Size) // the hole behind every file
	default:
		return fuse.Status(unix.ENXIO)
	}
	return fuse.OK
}
