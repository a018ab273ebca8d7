package layertar

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// Names of the OCI layer spec, and what overlayfs has instead.
const (
	whiteoutPrefix = ".wh."
	opaqueName     = ".wh..wh..opq"
	xattrOpaque    = erofs.XattrOpaque
	xattrOrigin    = erofs.XattrOrigin
	paxXattr       = "SCHILY.xattr."
)

// bufferLen is how much file data is read at once.
const bufferLen = 1 << 20

// EntryError reports a file that no tar can hold. It is permanent for that layer.
type EntryError struct {
	// Path is the file's, without a leading slash.
	Path string
	// Reason says why.
	Reason string
}

// Error returns one sentence that names the file and the reason.
func (e *EntryError) Error() string {
	return fmt.Sprintf("%q cannot be written to a tar: %s", e.Path, e.Reason)
}

// Write writes the tar of t to w. data is the image (image-data address space)
// that the tree was parsed from; it is read for files only. A file that cannot
// be in the tar of a layer gives an *EntryError.
func Write(ctx context.Context, w io.Writer, t *erofs.Tree, data io.ReaderAt) error {
	e := &exporter{ctx: ctx, tree: t, data: data, w: tar.NewWriter(w), buf: make([]byte, bufferLen), first: map[erofs.Inode]string{}}
	if err := t.Walk(e.entry); err != nil {
		return err
	}
	if err := e.w.Close(); err != nil {
		return fmt.Errorf("ending the tar: %w", err)
	}
	return nil
}

type exporter struct {
	ctx   context.Context // of the one Write that it serves
	tree  *erofs.Tree
	data  io.ReaderAt
	w     *tar.Writer
	buf   []byte
	first map[erofs.Inode]string // first paths of files with several
}

// entry writes one name of the tree.
func (e *exporter) entry(path []byte, i erofs.Inode) error {
	if e.ctx.Err() != nil {
		return context.Cause(e.ctx)
	}
	name, a := string(path), e.tree.Attr(i)
	if name == "" {
		return e.root(a)
	}
	if base := name[strings.LastIndexByte(name, '/')+1:]; strings.HasPrefix(base, whiteoutPrefix) {
		return &EntryError{name, "its name would be taken for a whiteout"}
	}
	if a.IsWhiteout() {
		return e.whiteout(name)
	}
	hdr, opaque, err := e.describe(name, i, a)
	if err != nil {
		return err
	}
	if e.tree.Nlink(i) > 1 && !a.IsDir() {
		if first, ok := e.first[i]; ok {
			// Unpackers give the file what the header of a link says, owner and time too;
			// and chown(2) takes capabilities away, which come again after it.
			hdr.Typeflag, hdr.Linkname, hdr.Size, hdr.Devmajor, hdr.Devminor = tar.TypeLink, first, 0, 0, 0
			return e.header(hdr)
		}
		e.first[i] = name
	}
	if err := e.header(hdr); err != nil {
		return err
	}
	if opaque && a.IsDir() {
		return e.marker(name + "/" + opaqueName)
	}
	if hdr.Typeflag == tar.TypeReg {
		return e.content(name, i)
	}
	return nil
}

// root writes an entry for the root only if it says something.
func (e *exporter) root(a erofs.Attr) error {
	hdr, opaque, err := e.describe("", erofs.RootInode, a)
	if err != nil {
		return err
	}
	plain := erofs.Attr{Mode: unix.S_IFDIR | 0o755}
	if a != plain || len(hdr.PAXRecords) > 0 {
		hdr.Name = "./"
		if err := e.header(hdr); err != nil {
			return err
		}
	}
	if opaque {
		return e.marker(opaqueName)
	}
	return nil
}

// describe makes the header of an inode and says whether it is marked opaque.
func (e *exporter) describe(name string, i erofs.Inode, a erofs.Attr) (hdr *tar.Header, opaque bool, err error) {
	hdr = &tar.Header{
		Name: name, Mode: int64(a.Mode & 0o7777), Uid: int(a.UID), Gid: int(a.GID),
		ModTime: time.Unix(a.Mtime, int64(a.MtimeNsec)).UTC(), Format: tar.FormatPAX,
	}
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		hdr.Typeflag, hdr.Size = tar.TypeReg, a.Size
	case unix.S_IFDIR:
		hdr.Typeflag, hdr.Name = tar.TypeDir, name+"/"
	case unix.S_IFLNK:
		hdr.Typeflag, hdr.Linkname = tar.TypeSymlink, string(e.tree.Target(i))
	case unix.S_IFCHR:
		hdr.Typeflag = tar.TypeChar
	case unix.S_IFBLK:
		hdr.Typeflag = tar.TypeBlock
	case unix.S_IFIFO:
		hdr.Typeflag = tar.TypeFifo
	default:
		return nil, false, &EntryError{name, "layers hold no sockets"}
	}
	if hdr.Typeflag == tar.TypeChar || hdr.Typeflag == tar.TypeBlock {
		hdr.Devmajor, hdr.Devminor = device(a.Rdev)
	}
	for key, value := range e.tree.Xattrs(i) {
		switch k := string(key); {
		case k == xattrOpaque:
			opaque = string(value) == "y"
		case k == xattrOrigin:
		case strings.ContainsRune(k, '='):
			return nil, false, &EntryError{name, fmt.Sprintf("a PAX record cannot name the attribute %q", k)}
		default:
			if hdr.PAXRecords == nil {
				hdr.PAXRecords = map[string]string{}
			}
			hdr.PAXRecords[paxXattr+k] = string(value)
		}
	}
	return hdr, opaque, nil
}

// device splits a device number as new_encode_dev joins it
// (include/linux/kdev_t.h).
func device(rdev uint32) (major, minor int64) {
	return int64(rdev & 0xfff00 >> 8), int64(rdev&0xff | rdev>>12&0xfff00)
}

// whiteout writes the deletion of name.
func (e *exporter) whiteout(name string) error {
	i := strings.LastIndexByte(name, '/') + 1
	return e.marker(name[:i] + whiteoutPrefix + name[i:])
}

// marker writes an empty file whose name is what counts.
func (e *exporter) marker(name string) error {
	return e.header(&tar.Header{Typeflag: tar.TypeReg, Name: name, ModTime: time.Unix(0, 0).UTC()})
}

func (e *exporter) header(hdr *tar.Header) error {
	hdr.Format = tar.FormatPAX
	err := e.w.WriteHeader(hdr)
	if errors.Is(err, tar.ErrHeader) {
		return &EntryError{hdr.Name, err.Error()}
	}
	if err != nil {
		return fmt.Errorf("writing tar entry %q: %w", hdr.Name, err)
	}
	return nil
}

// content writes the data of a regular file.
func (e *exporter) content(name string, i erofs.Inode) error {
	for _, x := range e.tree.Extents(i) {
		var src io.Reader = zeros{}
		if x.Addr != erofs.HoleAddr {
			if x.Device != 0 {
				return &EntryError{name, fmt.Sprintf("its data is on device %d, only the layer's own image can be read", x.Device)}
			}
			src = io.NewSectionReader(e.data, x.Addr, x.Len)
		}
		if err := e.copy(src, x.Len); err != nil {
			return fmt.Errorf("copying the data of %q: %w", name, err)
		}
	}
	return nil
}

// copy copies n bytes. The buffer is large so that neighbouring chunks are asked
// for together.
func (e *exporter) copy(src io.Reader, n int64) error {
	for n > 0 {
		if e.ctx.Err() != nil {
			return context.Cause(e.ctx)
		}
		p := e.buf[:min(n, bufferLen)]
		if _, err := io.ReadFull(src, p); err != nil {
			return err
		}
		if _, err := e.w.Write(p); err != nil {
			return err
		}
		n -= int64(len(p))
	}
	return nil
}

// zeros is what a hole reads as.
type zeros struct{}

// Read implements io.Reader.
func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
