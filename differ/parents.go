package differ

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// implied returns what tells the attributes of directories that a tar names only
// as parents: those that the directory has in the overlay of the layers below, where
// unpacking into it would find it. Only layers that are here whole are asked, the
// highest first and none below one that is not: this process must never wait for a
// read that it answers itself. It is nil when there is no such layer.
func (d *Differ) implied(mounts []mount.Mount) func(string) (erofs.Attr, bool, error) {
	stack, err := stackOf(mounts)
	if err != nil || d.cfg.Snapshots == "" || len(stack.dirs) < 2 {
		return nil
	}
	var local []lowerDir
	for _, dir := range stack.dirs[1:] { // the first is the directory of this layer
		if !d.ours(dir) && !d.unpacked(dir) {
			break
		}
		local = append(local, lowerDir{path: dir, opaque: stack.marks + "opaque"})
	}
	if local == nil {
		return nil
	}
	return func(path string) (erofs.Attr, bool, error) {
		for _, dir := range local {
			attr, found, err := dir.find(path)
			if err != nil {
				return erofs.Attr{}, false, fmt.Errorf("looking into the layer at %s: %w", dir.path, err)
			}
			if found != maybeBelow {
				return attr, found == here, nil
			}
		}
		return erofs.Attr{}, false, nil
	}
}

// unpacked reports whether dir is where a layer is mounted that is here as a file.
func (d *Differ) unpacked(dir string) bool {
	fi, err := os.Lstat(filepath.Join(d.cfg.Snapshots, filepath.Base(dir), LayerFile))
	return err == nil && fi.Mode().IsRegular() &&
		strings.HasPrefix(dir, filepath.Dir(filepath.Clean(d.cfg.Snapshots))+"/")
}

// lowerDir is where a layer is that lies below the one that is unpacked.
type lowerDir struct {
	path   string
	opaque string // overlayfs' attribute of directories that hide those below
}

// finding is what a layer says of a directory.
type finding uint8

const (
	maybeBelow finding = iota // nothing: a lower layer may have it
	here                      // it has it
	nowhere                   // there is none, whatever lower layers have
)

// find looks a directory up by overlayfs' rules: what is no directory, a whiteout
// as well as a file or a link, hides all that lower layers have at its path and
// below it, and an opaque directory what they have in it.
func (l lowerDir) find(path string) (erofs.Attr, finding, error) {
	missing := maybeBelow
	dir, err := openAt(unix.AT_FDCWD, l.path+"/.") // which may be a link
	if isAbsent(err) {
		return erofs.Attr{}, nowhere, nil // not mounted: nobody knows what it hides
	}
	for err == nil {
		var attr erofs.Attr
		var opaque bool
		attr, opaque, err = l.look(dir)
		switch {
		case err != nil:
			return erofs.Attr{}, nowhere, errors.Join(err, dir.Close())
		case !attr.IsDir():
			return erofs.Attr{}, nowhere, dir.Close()
		case path == "":
			return attr, here, dir.Close()
		case opaque:
			missing = nowhere
		}
		var name string
		name, path, _ = strings.Cut(path, "/")
		up := dir
		dir, err = openAt(int(up.Fd()), name)
		if cerr := up.Close(); err == nil && cerr != nil {
			err = errors.Join(cerr, dir.Close())
		}
	}
	if isAbsent(err) {
		return erofs.Attr{}, missing, nil
	}
	return erofs.Attr{}, nowhere, err
}

// isAbsent reports whether err says that there is no file of that name. No file
// system has the name that is too long for this one.
func isAbsent(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) ||
		errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENAMETOOLONG)
}

// look returns the attributes of a file and whether it is an opaque directory.
func (l lowerDir) look(f *os.File) (attr erofs.Attr, opaque bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return attr, false, os.NewSyscallError("fstat", err)
	}
	attr = erofs.Attr{Mode: uint16(st.Mode), UID: st.Uid, GID: st.Gid}
	attr.Mtime, attr.MtimeNsec = mtimeOf(time.Unix(st.Mtim.Unix()))
	if !attr.IsDir() {
		return attr, false, nil
	}
	mark, err := getXattr(procPath(f), l.opaque)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP) {
		return attr, false, nil
	}
	return attr, mark == "y", err
}
