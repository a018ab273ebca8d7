package differ

import (
	"archive/tar"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// Names that mean something in the tar of a layer (OCI image spec, layer.md).
const (
	whiteoutPrefix = ".wh."
	aufsPrefix     = ".wh..wh." // AUFS' own bookkeeping
	opaqueName     = ".wh..wh..opq"
)

// How overlayfs says the same.
const (
	xattrOpaque = erofs.XattrOpaque
	xattrOrigin = erofs.XattrOrigin
)

type entryKind uint8

const (
	plain entryKind = iota
	whiteout
	opaque
	dropped
)

// classify tells markers from files by the clean path of an entry.
func classify(hdr *tar.Header, p string) (entryKind, error) {
	if !strings.Contains(p, whiteoutPrefix) {
		return plain, nil
	}
	dir, base := splitPath(p)
	for dir != "" {
		var comp string
		comp, dir, _ = strings.Cut(dir, "/")
		if strings.HasPrefix(comp, aufsPrefix) {
			return dropped, nil
		}
		if strings.HasPrefix(comp, whiteoutPrefix) {
			return plain, badEntry(hdr.Name, "lies in %q, which is a whiteout", comp)
		}
	}
	switch {
	case base == opaqueName:
		return opaque, nil
	case strings.HasPrefix(base, aufsPrefix):
		return dropped, nil
	case !strings.HasPrefix(base, whiteoutPrefix):
		return plain, nil
	}
	if hdr.Size != 0 {
		return plain, badEntry(hdr.Name, "is a whiteout with %d bytes of data", hdr.Size)
	}
	if name := base[len(whiteoutPrefix):]; name == "" || name == "." || name == ".." {
		return plain, badEntry(hdr.Name, "is a whiteout of %q", name)
	}
	return whiteout, nil
}

// marks collects whiteouts and opaque directories. They are about the layers
// below and never about other entries of their own layer, whatever the order,
// so they are applied when all entries are known.
type marks struct {
	whiteouts pathSet
	opaques   pathSet
}

// pathSet is a set of paths in the order in which they came.
type pathSet struct {
	paths []string
	has   map[string]struct{}
}

func (s *pathSet) len() int { return len(s.paths) }

// add reports whether p is new.
func (s *pathSet) add(p string) bool {
	if _, ok := s.has[p]; ok {
		return false
	}
	if s.has == nil {
		s.has = make(map[string]struct{})
	}
	p = strings.Clone(p) // or all PAX records of the entry would stay
	s.paths, s.has[p] = append(s.paths, p), struct{}{}
	return true
}

func (t *ingest) whiteout(p string) error {
	if !t.marks.whiteouts.add(p) {
		return nil
	}
	if err := t.room(); err != nil {
		return err
	}
	return t.keep(markCost + len(p))
}

func (t *ingest) opaque(dir string) error {
	if !t.marks.opaques.add(dir) {
		return nil
	}
	return t.keep(markCost + len(dir))
}

// apply makes overlayfs' marks. A real entry beats a whiteout of its name; a real
// directory then hides the one below, which overlayfs calls opaque. A mark in a
// directory that another entry replaced is void.
func (m *marks) apply(b *erofs.Builder) error {
	for _, p := range m.whiteouts.paths {
		if err := m.applyWhiteout(b, p); err != nil {
			return wrapEntry(p, err)
		}
	}
	for _, dir := range m.opaques.paths {
		if i, ok := b.Lookup(dir); ok && b.Attr(i).IsDir() {
			if err := b.SetXattr(i, xattrOpaque, []byte("y")); err != nil {
				return wrapEntry(dir, err)
			}
		}
	}
	return nil
}

func (m *marks) applyWhiteout(b *erofs.Builder, p string) error {
	dir, _ := splitPath(p)
	up, ok := b.Lookup(dir)
	if !ok || !b.Attr(up).IsDir() {
		return nil
	}
	i, ok := b.Lookup(p)
	if !ok {
		if _, err := b.Put(p, erofs.Attr{Mode: unix.S_IFCHR}); err != nil {
			return err
		}
		return b.SetXattr(up, xattrOrigin, nil)
	}
	switch a := b.Attr(i); {
	case a.IsDir():
		return b.SetXattr(i, xattrOpaque, []byte("y"))
	case a.IsWhiteout():
		return b.SetXattr(up, xattrOrigin, nil)
	}
	return nil
}
