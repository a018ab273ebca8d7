package fusetree

import (
	"context"
	"fmt"
	"sort"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/fusesession"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// Read answers with file data; holes are zeros. It reads whole ranges or fails:
// the kernel takes a short answer for the end of the file.
func (s *tree) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	i, ok := s.inode(in.NodeId)
	if !ok {
		return nil, fuse.Status(unix.ESTALE)
	}
	size, off := s.t.Attr(i).Size, int64(in.Offset)
	if off < 0 || off >= size {
		return fuse.ReadResultData(nil), fuse.OK
	}
	buf = buf[:min(int64(len(buf)), size-off)]
	exts := s.t.Extents(i)
	exts = exts[find(exts, off):]
	missed, err := s.ensure(cancel, in.Pid, exts, off, int64(len(buf)))
	if err == nil {
		err = s.gather(buf, exts, off)
	}
	switch {
	case err != nil:
		s.stats.denied.Add(1)
		return nil, fuse.Status(driver.Errno(err))
	case missed:
		s.stats.misses.Add(1)
	default:
		s.stats.hits.Add(1)
	}
	return fuse.ReadResultData(buf), fuse.OK
}

// Resident says where the answer to a read is, when it is one run of a data file
// and there. It takes no lock and allocates nothing.
func (s *tree) Resident(node uint64, off int64, n int) (fd int, at int64, length int, ok bool) {
	i, ok := s.inode(node)
	if !ok || n <= 0 {
		return 0, 0, 0, false
	}
	size := s.t.Attr(i).Size
	if off < 0 || off >= size {
		return 0, 0, 0, false
	}
	length = int(min(int64(n), size-off))
	exts := s.t.Extents(i)
	e := &exts[find(exts, off)]
	if e.Addr == erofs.HoleAddr || off+int64(length) > e.Off+e.Len {
		return 0, 0, 0, false
	}
	at = e.Addr + off - e.Off
	if !s.layers[e.Device].Resident(at, int64(length)) {
		return 0, 0, 0, false
	}
	s.stats.hits.Add(1)
	return s.fds[e.Device], at, length, true
}

// find returns the number of the extent that holds byte off.
func find(exts []erofs.Extent, off int64) int {
	return sort.Search(len(exts), func(k int) bool { return exts[k].Off+exts[k].Len > off })
}

// ensure makes [off, off+n) of a file resident; exts begin with the one that
// holds off. missed says that something was not.
func (s *tree) ensure(cancel <-chan struct{}, pid uint32, exts []erofs.Extent, off, n int64) (missed bool, err error) {
	for _, e := range exts {
		if e.Off >= off+n {
			break
		}
		if e.Addr == erofs.HoleAddr {
			continue
		}
		from := max(off, e.Off)
		addr, length := e.Addr+from-e.Off, min(off+n, e.Off+e.Len)-from
		l := s.layers[e.Device]
		if l.Resident(addr, length) {
			continue
		}
		if err := s.fetch(cancel, pid, l, addr, length); err != nil {
			s.stats.denials.Note(s.context(), l.ID(), addr, length, err)
			return true, err
		}
		missed = true
	}
	return missed, nil
}

// gather copies [off, off+len(p)) of a file, all of it resident.
func (s *tree) gather(p []byte, exts []erofs.Extent, off int64) error {
	for _, e := range exts {
		if len(p) == 0 {
			break
		}
		n := min(int64(len(p)), e.Off+e.Len-off)
		if e.Addr == erofs.HoleAddr {
			clear(p[:n])
		} else if _, err := s.layers[e.Device].Data().ReadAt(p[:n], e.Addr+off-e.Off); err != nil {
			return fmt.Errorf("reading the data file of layer %s: %w", s.layers[e.Device].ID(), err)
		}
		p, off = p[n:], off+n
	}
	return nil
}

// fetch waits for a range of a layer. The wait ends early when the session
// cannot wait any longer, or when the reader is being killed: nobody else would
// see that error.
//
// An interrupt alone is no reason, since the kernel sends one for any signal: a
// read of a file that gives EINTR, or a page that is not there, breaks programs
// which rightly expect neither.
func (s *tree) fetch(cancel <-chan struct{}, pid uint32, l driver.Layer, addr, n int64) error {
	ctx, stop := context.WithCancel(s.context())
	defer stop()
	ended := make(chan struct{})
	defer close(ended)
	go func() { // ends with this call
		select {
		case <-cancel:
			if fusesession.Dying(pid) {
				stop()
			}
		case <-ended:
		}
	}()
	return l.Ensure(ctx, addr, n)
}

// Lseek finds data and holes. The kernel asks for nothing else.
func (s *tree) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	i, ok := s.inode(in.NodeId)
	if !ok {
		return fuse.Status(unix.ESTALE)
	}
	size := s.t.Attr(i).Size
	off := int64(in.Offset)
	if off < 0 || off >= size {
		return fuse.Status(unix.ENXIO)
	}
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return fuse.EINVAL
	}
	exts := s.t.Extents(i)
	for _, e := range exts[find(exts, off):] {
		if (e.Addr == erofs.HoleAddr) == (in.Whence == unix.SEEK_HOLE) {
			out.Offset = uint64(max(off, e.Off))
			return fuse.OK
		}
	}
	if in.Whence == unix.SEEK_DATA {
		return fuse.Status(unix.ENXIO)
	}
	out.Offset = uint64(size) // the hole behind every file
	return fuse.OK
}
