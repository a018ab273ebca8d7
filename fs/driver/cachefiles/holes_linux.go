package cachefiles

import (
	"bufio"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

const (
	// zeroArea is how many bytes of zeros holes are mapped to, unless one has so many
	// pieces then that the area must be longer.
	zeroArea  = 1 << 20
	maxPieces = 4096
)

// solid is metadata that shows the same tree as a layer's, with every hole mapped
// to zeros behind the image data.
type solid struct {
	layout *erofs.Layout
	end    int64 // of the zeros, bytes of the data device
}

// withoutHoles makes the metadata of a layer solid; nil when it has no hole. size
// is that of the image data in bytes.
//
// In this mode EROFS fills the rest of a read-ahead with zeros as soon as it meets a
// hole (erofs_fscache_data_read, all kernels that were looked at): what follows the
// hole is lost. So the kernel is shown none. The metadata becomes an image of its
// own, which has the image data, as it is, as its device 1.
func withoutHoles(l driver.Layer, size int64) (*solid, error) {
	tree, err := parse(l, size)
	if err != nil {
		return nil, err
	}
	base := roundUp(size)
	var longest int64
	for i := range tree.Len() {
		for _, e := range tree.Extents(erofs.Inode(i)) {
			if e.Addr == erofs.HoleAddr {
				longest = max(longest, e.Len)
			}
		}
	}
	if longest == 0 {
		return nil, nil
	}
	area := roundUp(max(min(zeroArea, longest), longest/maxPieces))
	for i := range tree.Len() {
		if old := tree.Extents(erofs.Inode(i)); len(old) > 0 {
			tree.SetExtents(erofs.Inode(i), solidExtents(old, base, area))
		}
	}
	s := &solid{end: base + area}
	s.layout, err = erofs.NewLayout(tree, erofs.WriteOptions{
		Devices: []erofs.Device{{Tag: "data", Blocks: uint64(s.end / blockSize)}},
	})
	return s, err
}

// parse reads the tree of a layer, which was found good before: only its bounds
// are checked again.
func parse(l driver.Layer, size int64) (*erofs.Tree, error) {
	image, policy := l.Data(), erofs.DefaultPolicy(driver.ImageSize(l, size))
	if l.Meta() != nil {
		n, err := sizeOf(l.Meta())
		if err != nil {
			return nil, err
		}
		image, policy = l.Meta(), erofs.DefaultPolicy(n)
		policy.Devices = []erofs.Device{{Blocks: uint64(size / blockSize)}}
	}
	policy.AnyXattrs = true
	parsed, err := erofs.Parse(image, policy)
	if err != nil {
		return nil, err
	}
	return parsed.Tree, nil
}

// solidExtents puts all extents on device 1 and holes onto [base, base+area).
func solidExtents(old []erofs.Extent, base, area int64) []erofs.Extent {
	var exts []erofs.Extent
	for _, e := range old {
		e.Device = 1
		if e.Addr != erofs.HoleAddr {
			exts = append(exts, e)
			continue
		}
		for end := e.Off + e.Len; e.Off < end; e.Off += e.Len {
			e.Len, e.Addr = min(area, end-e.Off), base
			exts = append(exts, e)
		}
	}
	return exts
}

// write writes the metadata into a file without a name below dir.
func (s *solid) write(dir string) (_ *os.File, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("making a file in %s: %w", dir, err)
	}
	f := os.NewFile(uintptr(fd), "metadata without holes")
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	w := bufio.NewWriterSize(f, window)
	if _, err := s.layout.WriteMeta(w, 0); err != nil {
		return nil, err
	}
	return f, w.Flush()
}
