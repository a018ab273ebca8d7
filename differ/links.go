package differ

import (
	"archive/tar"
	"strings"

	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// hardLink is a link whose target was not there yet.
type hardLink struct {
	name   string // as the tar has it
	at     string
	target string // clean, not resolved
}

// links are those that wait for their targets, in the order in which they came. A
// later one replaces one of the same name.
type links struct {
	all []hardLink
	at  map[string]int // numbers in all
}

// add returns how many bytes more are kept.
func (l *links) add(h hardLink) int {
	cost := len(h.name) + len(h.at) + len(h.target)
	if k, ok := l.at[h.at]; ok {
		old := l.all[k]
		l.all[k] = h
		return cost - len(old.name) - len(old.at) - len(old.target)
	}
	if l.at == nil {
		l.at = make(map[string]int)
	}
	l.at[h.at] = len(l.all)
	l.all = append(l.all, h)
	return cost + linkCost
}

// hardLink enters a second name of a file. Only the name counts: mode, owner and
// extended attributes are those of the entry that brought the file.
func (t *ingest) hardLink(hdr *tar.Header, at string) error {
	target, err := cleanName(hdr.Linkname)
	if err != nil {
		return badEntry(hdr.Name, "is a hard link to %q, which is not a path in the layer", hdr.Linkname)
	}
	resolved, err := t.resolve(target, false)
	if err != nil {
		return err
	}
	i, ok := t.b.Lookup(resolved)
	if ok && resolved == at {
		return nil // a link to itself, which GNU tar writes for repeated members
	}
	t.fresh = false
	if ok {
		return t.link(hdr.Name, at, i)
	}
	if _, ok := t.b.Lookup(at); ok { // what was here goes, as with any later entry
		if err := t.b.Remove(at); err != nil {
			return wrapEntry(hdr.Name, err)
		}
	}
	// Not what is in the header, or all PAX records of the entry would stay.
	return t.keep(t.links.add(hardLink{name: strings.Clone(hdr.Name), at: strings.Clone(at), target: strings.Clone(target)}))
}

func (t *ingest) link(name, at string, to erofs.Inode) error {
	if t.b.Attr(to).IsDir() {
		return badEntry(name, "is a hard link to a directory")
	}
	if err := t.b.Link(at, to); err != nil {
		return wrapEntry(name, err)
	}
	return t.named(at, 0)
}

// finishLinks makes the links whose targets came later, which may be links that
// waited too. A file that came later at a link's own path stays.
func (t *ingest) finishLinks() error {
	waiting := make(map[string][]hardLink) // by what their target resolves to
	for _, l := range t.links.all {
		if err := t.finishLink(l, waiting); err != nil {
			return err
		}
	}
	for _, l := range t.links.all {
		if _, ok := t.b.Lookup(l.at); !ok {
			return badEntry(l.name, "is a hard link to %q, which is not in the layer", l.target)
		}
	}
	return nil
}

// finishLink makes l if its target exists, and then those that waited for l.
func (t *ingest) finishLink(l hardLink, waiting map[string][]hardLink) error {
	for ready := []hardLink{l}; len(ready) > 0; {
		l, ready = ready[len(ready)-1], ready[:len(ready)-1]
		if _, ok := t.b.Lookup(l.at); ok {
			continue
		}
		resolved, err := t.resolve(l.target, false)
		if err != nil {
			return err
		}
		i, ok := t.b.Lookup(resolved)
		if !ok {
			waiting[resolved] = append(waiting[resolved], l)
			continue
		}
		if err := t.link(l.name, l.at, i); err != nil {
			return err
		}
		ready = append(ready, waiting[l.at]...)
		delete(waiting, l.at)
	}
	return nil
}
