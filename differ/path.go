package differ

import (
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

const (
	maxPath  = 4095 // PATH_MAX without the NUL: no kernel could open a longer one
	maxLinks = 255  // symbolic links in one path, as containerd's unpacking has it
)

// cleanName returns the path of an entry without leading or trailing slashes,
// "" for the root. Like containerd's unpacking it drops a leading slash and
// resolves "..", unlike it it refuses a path that leaves the root.
func cleanName(name string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return "", badEntry(name, "has a NUL byte in its path")
	}
	p := path.Clean(strings.TrimLeft(name, "/"))
	switch {
	case name == "":
		return "", badEntry(name, "has no path")
	case p == "..", strings.HasPrefix(p, "../"):
		return "", badEntry(name, "points outside the layer")
	case len(p) > maxPath:
		return "", badEntry(name[:64]+"…", "has a path longer than %d bytes", maxPath)
	case p == ".":
		return "", nil
	}
	return p, nil
}

// splitPath cuts p into its parent and its last component.
func splitPath(p string) (dir, base string) {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i], p[i+1:]
	}
	return "", p
}

func joinPath(dir, base string) string {
	if dir == "" {
		return base
	}
	return dir + "/" + base
}

// resolve follows the symbolic links of this layer in p, all of them when last
// is set and otherwise all but one in the last component, and returns the path
// that an entry of this name has once the layer is unpacked: containerd unpacks
// each layer into a directory of its own and follows only the links it finds
// there. The root is the root: neither "/" nor ".." in a target leads out of it.
// What does not exist is taken as it is.
func (t *ingest) resolve(p string, last bool) (string, error) {
	cur, rest := "", p
	for links := 0; rest != ""; {
		var comp string
		comp, rest, _ = strings.Cut(rest, "/")
		switch comp {
		case "", ".":
			continue
		case "..":
			cur, _ = splitPath(cur)
			continue
		}
		next := joinPath(cur, comp)
		i, ok := t.b.Lookup(next)
		target, isLink := "", false
		if ok && (last || rest != "") {
			target, isLink = t.targets[i]
		}
		if !isLink {
			cur = next
			continue
		}
		if links++; links > maxLinks {
			return "", badEntry(p, "leads through more than %d symbolic links", maxLinks)
		}
		if strings.HasPrefix(target, "/") {
			cur = ""
		}
		rest = joinPath(target, rest)
	}
	return cur, nil
}

// place returns the path at which an entry lands, and makes its parents.
func (t *ingest) place(p string) (string, error) {
	dir, base := splitPath(p)
	if dir == t.asked && t.fresh {
		return joinPath(t.found, base), nil
	}
	resolved := dir
	if i, ok := t.b.Lookup(dir); !ok || !t.b.Attr(i).IsDir() { // else no link is on the way
		var err error
		if resolved, err = t.resolve(dir, true); err != nil {
			return "", err
		}
		if err := t.mkdirs(p, resolved); err != nil {
			return "", err
		}
	}
	t.asked, t.found, t.fresh = dir, resolved, true
	return joinPath(resolved, base), nil
}

// mkdirs makes dir and its parents where they are missing. name is the entry
// that needs them.
func (t *ingest) mkdirs(name, dir string) error {
	if i, ok := t.b.Lookup(dir); ok {
		if !t.b.Attr(i).IsDir() {
			return badEntry(name, "lies in %q, which is not a directory", dir)
		}
		return nil
	}
	up, _ := splitPath(dir)
	if err := t.mkdirs(name, up); err != nil {
		return err
	}
	attr := erofs.Attr{Mode: unix.S_IFDIR | 0o755}
	if t.implied != nil {
		a, ok, err := t.implied(dir)
		if err != nil {
			return fmt.Errorf("looking up directory %.80q in the layers below: %w", dir, err)
		}
		if ok && a.IsDir() {
			attr = a
		}
	}
	i, err := t.b.Put(dir, attr)
	if err != nil {
		return wrapEntry(name, err)
	}
	return t.made(i, dir, "")
}
