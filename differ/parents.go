package differ

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/core/mount"

	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// implied returns what tells the attributes of directories that a tar names only
// as parents: those that the directory has in the layers below, as containerd's
// unpacking gives it. Only layers that are here whole are asked, the highest first
// and none below one that is not: this process must never wait for a read that it
// answers itself. It is nil when there is no such layer.
func (d *Differ) implied(mounts []mount.Mount) func(string) (erofs.Attr, bool, error) {
	stack, err := stackOf(mounts)
	if err != nil || d.cfg.Snapshots == "" || len(stack.dirs) < 2 {
		return nil
	}
	var local []string
	for _, dir := range stack.dirs[1:] { // the first is the directory of this layer
		if !d.ours(dir) && !d.unpacked(dir) {
			break
		}
		local = append(local, dir)
	}
	if local == nil {
		return nil
	}
	return func(path string) (erofs.Attr, bool, error) {
		for _, dir := range local {
			attr, ok := attrIn(dir, path)
			if ok {
				return attr, attr.IsDir(), nil
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

// attrIn returns the attributes that path has in the layer mounted at dir. Links
// are followed inside it only.
func attrIn(dir, path string) (erofs.Attr, bool) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return erofs.Attr{}, false
	}
	defer root.Close()
	fi, err := root.Lstat(path)
	if err != nil {
		return erofs.Attr{}, false
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return erofs.Attr{}, false
	}
	sec, nsec := mtimeOf(fi.ModTime())
	return erofs.Attr{Mode: uint16(st.Mode), UID: st.Uid, GID: st.Gid, Mtime: sec, MtimeNsec: nsec}, true
}
