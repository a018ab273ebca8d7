package differ

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// dataSink takes the data of regular files while the tar is read.
type dataSink interface {
	// put takes the size bytes of a file, size > 0, and returns the number of its
	// record.
	put(ctx context.Context, r io.Reader, size int64) (int, error)
}

// ingest turns tar entries into entries of a Builder by the rules of OCI layers.
// Where those leave something open it does what containerd's unpacking does.
type ingest struct {
	b       *erofs.Builder
	sink    dataSink
	implied func(string) (erofs.Attr, bool, error)
	each    func(*tar.Header) error // may be nil; sees every header first
	targets map[erofs.Inode]string  // of symbolic links
	marks   marks
	links   links
	most    limits
	kept    int           // of most.kept
	newest  erofs.Inode   // of most.inodes
	owners  []erofs.Inode // of records, by their numbers

	asked, found string // last directory that place resolved, and to what
	fresh        bool
}

func newIngest(sink dataSink, implied func(string) (erofs.Attr, bool, error)) *ingest {
	return &ingest{
		b:       erofs.NewBuilder(),
		sink:    sink,
		implied: implied,
		most:    layerLimits(),
		targets: make(map[erofs.Inode]string),
	}
}

// run reads the whole archive.
func (t *ingest) run(ctx context.Context, r io.Reader) error {
	tr := tar.NewReader(r)
	for n := 0; ; n++ {
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if n == t.most.entries {
			return &LimitError{What: "tar entries", Most: int64(n)}
		}
		if errors.Is(err, tar.ErrHeader) {
			if n == 0 {
				return fmt.Errorf("layer is not a tar archive, plain, gzip or zstd: %w", err)
			}
			return fmt.Errorf("reading entry %d of the tar: %w", n+1, err)
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) { // judged by cleanName
			return readError(fmt.Sprintf("reading entry %d of the tar", n+1), err)
		}
		if t.each != nil {
			if err := t.each(hdr); err != nil {
				return err
			}
		}
		if err := t.entry(ctx, hdr, tr); err != nil {
			return err
		}
	}
	if err := t.finishLinks(); err != nil {
		return err
	}
	return t.marks.apply(t.b)
}

func (t *ingest) entry(ctx context.Context, hdr *tar.Header, data io.Reader) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil // as containerd: nothing in it describes a file
	}
	p, err := cleanName(hdr.Name)
	if err != nil {
		return err
	}
	kind, err := classify(hdr, p)
	if err != nil || kind == dropped {
		return err
	}
	at := p
	if p != "" {
		if at, err = t.place(p); err != nil {
			return err
		}
	}
	switch kind {
	case whiteout:
		dir, base := splitPath(at)
		return t.whiteout(joinPath(dir, base[len(whiteoutPrefix):]))
	case opaque:
		dir, _ := splitPath(at)
		return t.opaque(dir)
	}
	return t.file(ctx, hdr, at, data)
}

// file enters an entry that is a file of some type at a path whose parents are
// directories.
func (t *ingest) file(ctx context.Context, hdr *tar.Header, at string, data io.Reader) error {
	if hdr.Typeflag == tar.TypeLink {
		return t.hardLink(hdr, at)
	}
	attr, err := attrOf(hdr)
	if err != nil {
		return err
	}
	if old, ok := t.b.Lookup(at); ok && (!attr.IsDir() || !t.b.Attr(old).IsDir()) {
		t.fresh = false // what is replaced may have been a directory
	}
	var i erofs.Inode
	if attr.Mode&unix.S_IFMT == unix.S_IFLNK {
		if i, err = t.b.PutSymlink(at, attr, hdr.Linkname); err == nil {
			t.targets[i] = strings.Clone(hdr.Linkname) // or all PAX records of the entry would stay
			t.fresh = false
		}
	} else {
		i, err = t.b.Put(at, attr)
	}
	if err != nil {
		return wrapEntry(hdr.Name, err)
	}
	if err := t.made(i, at, hdr.Linkname); err != nil {
		return err
	}
	if attr.IsWhiteout() {
		if err := t.whiteout(at); err != nil {
			return err
		}
	}
	if err := t.xattrs(hdr, i, attr); err != nil {
		return err
	}
	if attr.Size == 0 {
		return nil
	}
	rec, err := t.sink.put(ctx, data, attr.Size)
	if err != nil {
		return wrapEntry(hdr.Name, err)
	}
	t.owners = append(t.owners, i)
	t.b.SetExtents(i, recordExtents(rec, attr.Size))
	return nil
}

func wrapEntry(name string, err error) error { return fmt.Errorf("tar entry %q: %w", name, err) }

// recordExtents names a record by the address of a file's only extent. It is
// what survives the renumbering of inodes when the tree is frozen.
func recordExtents(rec int, size int64) []erofs.Extent {
	return []erofs.Extent{{Len: size, Addr: int64(rec) * blockSize}}
}

// recordOf undoes recordExtents.
func recordOf(e []erofs.Extent) int { return int(e[0].Addr / blockSize) }

// attrOf returns what a header says about its file.
func attrOf(hdr *tar.Header) (erofs.Attr, error) {
	a := erofs.Attr{Mode: uint16(hdr.Mode & 0o7777)}
	if hdr.Uid < 0 || hdr.Uid > math.MaxUint32 || hdr.Gid < 0 || hdr.Gid > math.MaxUint32 {
		return a, badEntry(hdr.Name, "has owner %d:%d, ids are 0 to %d", hdr.Uid, hdr.Gid, uint32(math.MaxUint32))
	}
	a.UID, a.GID = uint32(hdr.Uid), uint32(hdr.Gid)
	a.Mtime, a.MtimeNsec = mtimeOf(hdr.ModTime)
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		a.Mode |= unix.S_IFREG
		a.Size = hdr.Size
	case tar.TypeDir:
		a.Mode |= unix.S_IFDIR
	case tar.TypeSymlink:
		a.Mode = unix.S_IFLNK | 0o777 // Linux has no other
	case tar.TypeFifo:
		a.Mode |= unix.S_IFIFO
	case tar.TypeChar, tar.TypeBlock:
		a.Mode |= unix.S_IFCHR
		if hdr.Typeflag == tar.TypeBlock {
			a.Mode = a.Mode&^unix.S_IFMT | unix.S_IFBLK
		}
		if hdr.Devmajor < 0 || hdr.Devmajor >= 1<<12 || hdr.Devminor < 0 || hdr.Devminor >= 1<<20 {
			return a, badEntry(hdr.Name, "has device number %d:%d, Linux allows 4095:1048575", hdr.Devmajor, hdr.Devminor)
		}
		a.Rdev = encodeDev(uint32(hdr.Devmajor), uint32(hdr.Devminor))
	default:
		return a, badEntry(hdr.Name, "has type %q, which layers do not have", hdr.Typeflag)
	}
	if most := erofs.DefaultPolicy(0).MaxFileSize; a.Size < 0 || a.Size > most { // which the strict parser would refuse
		return a, badEntry(hdr.Name, "has size %d, a layer's files have at most %d bytes", a.Size, most)
	}
	return a, nil
}

// encodeDev is the kernel's new_encode_dev (include/linux/kdev_t.h).
func encodeDev(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | (minor&^0xff)<<12
}

// mtimeOf takes times outside what a 64-bit nanosecond clock holds, and those
// before 1970, as 1970: containerd's unpacking does so.
func mtimeOf(t time.Time) (sec int64, nsec uint32) {
	if t.Before(time.Unix(0, 0)) || t.After(time.Unix(0, math.MaxInt64)) {
		return 0, 0
	}
	return t.Unix(), uint32(t.Nanosecond())
}
