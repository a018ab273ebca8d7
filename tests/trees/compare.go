package trees

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/continuity/sysx"
	"golang.org/x/sys/unix"
)

// maxDifferences ends a comparison early: the first few tell what is wrong.
const maxDifferences = 20

// Compare returns how the tree below got differs from the one below want, a
// line for each difference, nothing when they are equal.
func Compare(want, got string) ([]string, error) { return (&comparison{want: want, got: got}).run() }

// CompareOverlay is Compare with an overlay as what is wanted. overlayfs shows the
// link counts of the layers, whatever is hidden, so these are not looked at;
// instead the names of a file that are there must be as many as its links in got.
func CompareOverlay(want, got string) ([]string, error) {
	return (&comparison{want: want, got: got, overlay: true}).run()
}

func (c *comparison) run() ([]string, error) {
	want, got := c.want, c.got
	c.links, c.found, c.linked = map[file]file{}, map[file]uint64{}, map[file]string{}
	err := filepath.WalkDir(want, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(want, path)
		if err != nil {
			return err
		}
		if len(c.diffs) >= maxDifferences {
			return filepath.SkipAll
		}
		return c.entry(rel, d)
	})
	if err != nil {
		return nil, fmt.Errorf("comparing %s with %s: %w", got, want, err)
	}
	for f, path := range c.linked {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(got, path), &st); err != nil {
			return nil, fmt.Errorf("counting links of %s: %w", path, err)
		}
		if n := c.found[f]; n != st.Nlink && len(c.diffs) < maxDifferences {
			c.differ(path, "link count", n, st.Nlink)
		}
	}
	return c.diffs, nil
}

// file is an inode.
type file struct{ dev, ino uint64 }

type comparison struct {
	want, got string
	// links maps inodes of want to those of got: hard links must stay together.
	links map[file]file
	diffs []string

	overlay bool
	found   map[file]uint64 // how many names want has of it
	linked  map[file]string // one of them
}

func (c *comparison) differ(rel, what string, want, got any) {
	c.diffs = append(c.diffs, fmt.Sprintf("%s: %s is %v, want %v", rel, what, got, want))
}

func (c *comparison) entry(rel string, d fs.DirEntry) error {
	want, got := filepath.Join(c.want, rel), filepath.Join(c.got, rel)
	var ws, gs unix.Stat_t
	if err := unix.Lstat(want, &ws); err != nil {
		return err
	}
	if err := unix.Lstat(got, &gs); err != nil {
		c.differ(rel, "lstat", "no error", err)
		return nil
	}
	c.stat(rel, &ws, &gs)
	if err := c.xattrs(rel); err != nil {
		return err
	}
	switch d.Type() {
	case fs.ModeDir:
		return c.names(rel)
	case fs.ModeSymlink:
		return c.target(rel)
	case 0:
		if ws.Size == gs.Size {
			return c.content(rel)
		}
	}
	return nil
}

func (c *comparison) stat(rel string, w, g *unix.Stat_t) {
	for _, f := range []struct {
		what string
		w, g any
	}{
		{"mode", fmt.Sprintf("%o", w.Mode), fmt.Sprintf("%o", g.Mode)},
		{"owner", [2]uint32{w.Uid, w.Gid}, [2]uint32{g.Uid, g.Gid}},
		{"mtime", w.Mtim, g.Mtim},
		{"device", w.Rdev, g.Rdev},
		{"link count", w.Nlink, g.Nlink},
	} {
		switch {
		case f.w == f.g, c.overlay && f.what == "link count":
		case f.what == "mtime" && w.Mode&unix.S_IFMT == unix.S_IFCHR && w.Rdev == 0:
			// A whiteout: an unpacker gives it the time of the extraction, since it means
			// nothing.
		default:
			c.differ(rel, f.what, f.w, f.g)
		}
	}
	if w.Mode&unix.S_IFMT != unix.S_IFDIR {
		if w.Size != g.Size {
			c.differ(rel, "size", w.Size, g.Size)
		}
		wf, gf := file{w.Dev, w.Ino}, file{g.Dev, g.Ino}
		if first, ok := c.links[wf]; ok && first != gf {
			c.differ(rel, "inode", first, gf)
		}
		c.links[wf] = gf
		if c.overlay {
			c.found[wf]++
			c.linked[wf] = rel
		}
	}
}

func (c *comparison) xattrs(rel string) error {
	list := func(root string) (map[string]string, error) {
		path := filepath.Join(root, rel)
		names, err := sysx.LListxattr(path)
		if err != nil {
			return nil, fmt.Errorf("listing xattrs of %s: %w", path, err)
		}
		m := map[string]string{}
		for _, n := range names {
			v, err := sysx.LGetxattr(path, n)
			if err != nil {
				return nil, fmt.Errorf("reading xattr %s of %s: %w", n, path, err)
			}
			// The writer marks directories that hold whiteouts, so that overlayfs
			// filters them; no tar has that mark.
			if n == "trusted.overlay.origin" && len(v) == 0 {
				continue
			}
			m[n] = string(v)
		}
		return m, nil
	}
	w, err := list(c.want)
	if err != nil {
		return err
	}
	g, err := list(c.got)
	if err != nil {
		return err
	}
	if fmt.Sprint(w) != fmt.Sprint(g) {
		c.differ(rel, "xattrs", fmt.Sprintf("%q", w), fmt.Sprintf("%q", g))
	}
	return nil
}

func (c *comparison) names(rel string) error {
	list := func(root string) ([]string, error) {
		entries, err := os.ReadDir(filepath.Join(root, rel))
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names, err
	}
	w, err := list(c.want)
	if err != nil {
		return err
	}
	g, err := list(c.got)
	if err != nil {
		return err
	}
	if !slices.Equal(w, g) {
		c.differ(rel, "list of names", strings.Join(w, " "), strings.Join(g, " "))
	}
	return nil
}

func (c *comparison) target(rel string) error {
	w, err := os.Readlink(filepath.Join(c.want, rel))
	if err != nil {
		return err
	}
	g, err := os.Readlink(filepath.Join(c.got, rel))
	if err != nil {
		return err
	}
	if w != g {
		c.differ(rel, "target", w, g)
	}
	return nil
}

func (c *comparison) content(rel string) error {
	w, err := os.Open(filepath.Join(c.want, rel))
	if err != nil {
		return err
	}
	defer w.Close()
	g, err := os.Open(filepath.Join(c.got, rel))
	if err != nil {
		c.differ(rel, "open", "no error", err)
		return nil
	}
	defer g.Close()
	var wb, gb [64 << 10]byte
	for off := 0; ; off += len(wb) {
		n, werr := io.ReadFull(w, wb[:])
		m, gerr := io.ReadFull(g, gb[:])
		if n != m || !bytes.Equal(wb[:n], gb[:m]) {
			c.differ(rel, fmt.Sprintf("content from byte %d on", off), fmt.Sprint(n, " bytes"), fmt.Sprint(m, " other bytes, ", gerr))
			return nil
		}
		if werr == io.EOF || werr == io.ErrUnexpectedEOF {
			return nil
		}
		if werr != nil {
			return werr
		}
	}
}
