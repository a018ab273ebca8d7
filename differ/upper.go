package differ

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// upperDir is the directory of an overlay that takes the changes, or a plain
// directory that stands on nothing.
type upperDir struct {
	path  string
	marks string     // what overlayfs' own attributes begin with; "" without overlayfs
	bound *time.Time // the latest time that a file may have
}

// change is one file of an upper directory.
type change struct {
	path string // slash-separated and relative, "" for the root
	// gone: the name is deleted below, and nothing else of change counts.
	gone bool
	// opaque: the directory hides the one below.
	opaque bool
	// hdr says what the file is, as a tar entry does; its Name is path. A later
	// name of a file is a hard link to its first one.
	hdr  tar.Header
	data *fileData // nil unless there are data
}

// fileID is what hard links have in common.
type fileID struct{ dev, ino uint64 }

// upperWalk reads an upper directory. It goes from directory to directory by
// descriptors and follows no link: the container may change the tree meanwhile.
type upperWalk struct {
	ctx   context.Context
	dir   upperDir
	emit  func(*change) error
	first map[fileID]string // names of files that have more than one
}

// walk hands every change to emit, a directory before what is in it, by name.
func (u upperDir) walk(ctx context.Context, emit func(*change) error) error {
	w := &upperWalk{ctx: ctx, dir: u, emit: emit, first: make(map[fileID]string)}
	root, err := openAt(unix.AT_FDCWD, u.path)
	if err != nil {
		return fmt.Errorf("reading the upper directory: %w", err)
	}
	defer root.Close()
	return w.node(root, "", false)
}

// openAt returns a descriptor of a file of any type, for looking at it only.
func openAt(dir int, name string) (*os.File, error) {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// procPath names the file of a descriptor, whatever became of its name.
func procPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// node handles the file of a descriptor and, of a directory, all below it.
// inX: whiteouts are marked by an attribute in the directory that it is in.
func (w *upperWalk) node(f *os.File, path string, inX bool) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("reading %q: %w", path, err)
	}
	marks, xattrs, err := w.xattrs(f)
	if err != nil {
		return fmt.Errorf("reading the attributes of %q: %w", path, err)
	}
	if err := needsBelow(path, marks); err != nil {
		return err
	}
	if isGone(&st, marks, inX) {
		return w.emit(&change{path: path, gone: true})
	}
	c := &change{path: path, hdr: w.header(&st, path, xattrs)}
	if err := w.describe(f, &st, c); err != nil {
		return fmt.Errorf("reading %q: %w", path, err)
	}
	if c.data != nil {
		defer c.data.close()
	}
	opaque := marks["opaque"]
	c.opaque = opaque == "y" && path != ""
	if err := w.emit(c); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return err
	}
	return w.children(f, path, opaque == "x")
}

// needsBelow refuses what cannot be told without the layers below. The walking
// differ can.
func needsBelow(path string, marks map[string]string) error {
	if _, ok := marks["redirect"]; ok {
		return fmt.Errorf("%q was renamed and its content stayed in a layer below (overlayfs' redirect_dir): %w", path, errdefs.ErrNotImplemented)
	}
	if _, ok := marks["metacopy"]; ok {
		return fmt.Errorf("the data of %q stayed in a layer below (overlayfs' metacopy): %w", path, errdefs.ErrNotImplemented)
	}
	return nil
}

// isGone recognises deleted names: overlayfs' device 0:0, its marked empty file,
// and sockets, which no layer holds: what they hide must not come back.
func isGone(st *unix.Stat_t, marks map[string]string, inX bool) bool {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		return true
	case unix.S_IFCHR:
		return st.Rdev == 0
	case unix.S_IFREG:
		_, ok := marks["whiteout"]
		return inX && ok && st.Size == 0
	}
	return false
}

// header returns what all files have.
func (w *upperWalk) header(st *unix.Stat_t, path string, xattrs map[string]string) tar.Header {
	h := tar.Header{
		Name: path, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()), PAXRecords: xattrs,
	}
	if w.dir.bound != nil && h.ModTime.After(*w.dir.bound) {
		h.ModTime = *w.dir.bound
	}
	return h
}

// describe adds what depends on the type.
func (w *upperWalk) describe(f *os.File, st *unix.Stat_t, c *change) error {
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFDIR && st.Nlink > 1 {
		id := fileID{st.Dev, st.Ino}
		if first, ok := w.first[id]; ok {
			c.hdr.Typeflag, c.hdr.Linkname = tar.TypeLink, first
			// Unpackers give the file the owner in the header of a link, too, and chown(2)
			// takes its capability away, which must come again after it.
			c.hdr.PAXRecords = only(c.hdr.PAXRecords, paxXattr+capability)
			return nil
		}
		w.first[id] = c.path
	}
	switch kind {
	case unix.S_IFDIR:
		c.hdr.Typeflag = tar.TypeDir
	case unix.S_IFREG:
		c.hdr.Typeflag, c.hdr.Size = tar.TypeReg, st.Size
		if st.Size > 0 {
			data, err := os.Open(procPath(f))
			if err != nil {
				return err
			}
			c.data = &fileData{ctx: w.ctx, f: data, size: st.Size}
		}
	case unix.S_IFLNK:
		c.hdr.Typeflag = tar.TypeSymlink
		buf := make([]byte, maxPath+1)
		n, err := unix.Readlinkat(int(f.Fd()), "", buf)
		if err != nil {
			return os.NewSyscallError("readlinkat", err)
		}
		c.hdr.Linkname = string(buf[:n])
	case unix.S_IFIFO:
		c.hdr.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		c.hdr.Typeflag = tar.TypeChar
		if kind == unix.S_IFBLK {
			c.hdr.Typeflag = tar.TypeBlock
		}
		c.hdr.Devmajor, c.hdr.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	default:
		return fmt.Errorf("it has the unknown type %#o", kind)
	}
	return nil
}

// children handles what is in a directory, in the order of names.
func (w *upperWalk) children(f *os.File, path string, x bool) error {
	fd, err := unix.Openat(int(f.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	dir := os.NewFile(uintptr(fd), path)
	names, err := dir.Readdirnames(-1)
	if err = errors.Join(err, dir.Close()); err != nil {
		return fmt.Errorf("listing %q: %w", path, err)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := w.child(f, joinPath(path, name), name, x); err != nil {
			return err
		}
	}
	return nil
}

func (w *upperWalk) child(dir *os.File, path, name string, x bool) error {
	if len(path) > maxPath {
		return fmt.Errorf("%q… has a path longer than %d bytes, which no layer can hold: %w", path[:64], maxPath, errdefs.ErrInvalidArgument)
	}
	f, err := openAt(int(dir.Fd()), name)
	if errors.Is(err, os.ErrNotExist) {
		return nil // deleted since it was listed, by a container that is not paused
	}
	if err != nil {
		return fmt.Errorf("reading %q: %w", path, err)
	}
	defer f.Close()
	return w.node(f, path, x)
}

// xattrs returns overlayfs' own attributes without their prefix, and those that
// belong into the layer as PAX records.
func (w *upperWalk) xattrs(f *os.File) (marks, records map[string]string, err error) {
	names, err := listXattrs(procPath(f))
	if err != nil {
		return nil, nil, err
	}
	for _, name := range names {
		mark, isMark := strings.CutPrefix(name, w.dir.marks)
		isMark = isMark && w.dir.marks != ""
		if !isMark && !leavesHost(name) {
			continue
		}
		value, err := getXattr(procPath(f), name)
		if errors.Is(err, unix.ENODATA) {
			continue // removed since it was listed
		}
		if err != nil {
			return nil, nil, err
		}
		if isMark {
			marks = put(marks, mark, value)
		} else {
			records = put(records, paxXattr+name, value)
		}
	}
	return marks, records, nil
}

func put(m map[string]string, key, value string) map[string]string {
	if m == nil {
		m = make(map[string]string)
	}
	m[key] = value
	return m
}

// only returns the record of that key alone.
func only(m map[string]string, key string) map[string]string {
	v, ok := m[key]
	if !ok {
		return nil
	}
	return map[string]string{key: v}
}

// leavesHost reports whether an attribute belongs to the file rather than to this
// host. Labels of security modules (security.selinux, security.ima and the like)
// are the host's; of trusted.* no layer carries any.
func leavesHost(name string) bool {
	return strings.HasPrefix(name, "user.") || name == capability || name == aclAccess || name == aclDefault
}
