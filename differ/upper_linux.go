package differ

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// listXattrs returns the names of all attributes of path, which may be none
// where the file system has no attributes.
func listXattrs(path string) ([]string, error) {
	for {
		n, err := unix.Listxattr(path, nil)
		if errors.Is(err, unix.EOPNOTSUPP) || err == nil && n == 0 {
			return nil, nil
		}
		if err != nil {
			return nil, os.NewSyscallError("listxattr", err)
		}
		buf := make([]byte, n)
		n, err = unix.Listxattr(path, buf)
		if errors.Is(err, unix.ERANGE) {
			continue // it has more by now
		}
		if err != nil {
			return nil, os.NewSyscallError("listxattr", err)
		}
		if n == 0 {
			return nil, nil
		}
		return strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00"), nil
	}
}

// getXattr returns the value of one attribute.
func getXattr(path, name string) (string, error) {
	for {
		n, err := unix.Getxattr(path, name, nil)
		if err != nil {
			return "", os.NewSyscallError("getxattr", err)
		}
		if n == 0 {
			return "", nil
		}
		buf := make([]byte, n)
		n, err = unix.Getxattr(path, name, buf)
		if errors.Is(err, unix.ERANGE) {
			continue
		}
		if err != nil {
			return "", os.NewSyscallError("getxattr", err)
		}
		return string(buf[:n]), nil
	}
}

// fileData reads as many bytes of a file as it had when it was looked at. Holes
// are zeros that the file system is not asked for.
type fileData struct {
	ctx       context.Context
	f         *os.File
	off, size int64
	hole, end int64 // [off, hole) is a hole, then [hole, end) is data
}

// Read implements io.Reader.
func (r *fileData) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	if r.off == r.size {
		return 0, io.EOF
	}
	if r.off >= r.end {
		if err := r.seek(); err != nil {
			return 0, err
		}
	}
	if r.off < r.hole {
		n := int(min(int64(len(p)), r.hole-r.off))
		clear(p[:n])
		r.off += int64(n)
		return n, nil
	}
	n, err := r.f.ReadAt(p[:min(int64(len(p)), r.end-r.off)], r.off)
	r.off += int64(n)
	if err == io.EOF { //nolint:errorlint // ReadAt returns it bare
		err = nil
		if n == 0 {
			err = fmt.Errorf("%d of its %d bytes are left: it was cut while it was read, pause the container", r.off, r.size)
		}
	}
	return n, err
}

// seek finds the next data from off on.
func (r *fileData) seek() error {
	data, err := r.f.Seek(r.off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) { // a hole to the end
		r.hole, r.end = r.size, r.size
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking for data: %w", err)
	}
	hole, err := r.f.Seek(data, unix.SEEK_HOLE)
	if err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("looking for a hole: %w", err)
	}
	if err != nil {
		hole = r.size
	}
	r.hole, r.end = min(data, r.size), min(max(hole, data), r.size)
	return nil
}

// close ends the reading of a file that was only read.
func (r *fileData) close() { _ = r.f.Close() }
