package converter

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// Some tools leave out of a layer the directories that lower layers have, as
// Bazel's rules do. Unpacking such a layer keeps the lower directory's owner,
// mode and time; an EROFS layer must name the directory, so it must name it
// with those attributes. They are looked up in the metadata of the converted
// layers below, which is parsed only if a layer above asks.

// dirs answers for the directories of one converted layer.
type dirs struct {
	ready     chan struct{} // closed when the layer is done or failed
	meta      []byte        // the start of the blob, which holds all metadata
	form      differ.Form
	metaSize  int64
	imageSize int64

	once    sync.Once
	entries map[string]dirEntry
	err     error
}

// dirEntry is a directory or a whiteout.
type dirEntry struct {
	attr   erofs.Attr
	opaque bool
}

// keep remembers the metadata of the blob that was just written.
func (d *dirs) keep(blob io.ReaderAt, res differ.Result, form differ.Form) error {
	_, end, err := chunk.ParseEnds(res.Descriptor.Annotations[chunk.LabelPinned])
	if err != nil {
		return fmt.Errorf("finding the metadata of the new layer: %w", err)
	}
	d.meta = make([]byte, end)
	if _, err := blob.ReadAt(d.meta, 0); err != nil {
		return fmt.Errorf("reading the metadata of the new layer: %w", err)
	}
	d.form, d.metaSize, d.imageSize = form, res.MetaSize, res.ImageSize
	return nil
}

// restore remembers what keep remembered of an earlier run.
func (d *dirs) restore(meta []byte, form differ.Form, res LayerResult) {
	d.meta, d.form, d.metaSize, d.imageSize = meta, form, res.MetaSize, res.ImageSize
}

// load parses the metadata, once.
func (d *dirs) load() error {
	d.once.Do(func() {
		if d.meta == nil { // a native layer that passed through
			return
		}
		image := d.meta
		if d.form == differ.Zstd {
			dec, err := zstd.NewReader(bytes.NewReader(d.meta))
			if err != nil {
				d.err = err
				return
			}
			defer dec.Close()
			image = make([]byte, d.metaSize)
			if _, d.err = io.ReadFull(dec, image); d.err != nil {
				return
			}
		}
		d.meta = nil
		parsed, err := erofs.Parse(bytes.NewReader(image), erofs.DefaultPolicy(d.imageSize))
		if err != nil {
			d.err = err
			return
		}
		d.entries, d.err = listDirs(parsed.Tree)
	})
	return d.err
}

// listDirs collects the directories and whiteouts of a tree.
func listDirs(t *erofs.Tree) (map[string]dirEntry, error) {
	entries := make(map[string]dirEntry)
	err := t.Walk(func(path []byte, i erofs.Inode) error {
		a := t.Attr(i)
		if !a.IsDir() && !a.IsWhiteout() {
			return nil
		}
		e := dirEntry{attr: a}
		for name, value := range t.Xattrs(i) {
			e.opaque = e.opaque || (string(name) == erofs.XattrOpaque && string(value) == "y")
		}
		entries[string(path)] = e
		return nil
	})
	return entries, err
}

// find looks path up. decided means that layers further below do not count.
func (d *dirs) find(path string) (attr erofs.Attr, found, decided bool) {
	if e, ok := d.entries[path]; ok {
		return e.attr, e.attr.IsDir(), true
	}
	for up := path; up != ""; {
		up = up[:max(0, strings.LastIndexByte(up, '/'))]
		if e, ok := d.entries[up]; ok && (e.opaque || !e.attr.IsDir()) {
			return erofs.Attr{}, false, true
		}
	}
	return erofs.Attr{}, false, false
}

// implied returns the callback for a layer that lies on below, the nearest
// last. It waits for layers that are still being converted; those were begun
// earlier and wait only for still earlier ones. An error in one of them ends
// the conversion anyway, so it is not told here.
func implied(ctx context.Context, below []*job) func(string) (erofs.Attr, bool) {
	return func(path string) (erofs.Attr, bool) {
		for i := len(below) - 1; i >= 0; i-- {
			d := &below[i].dirs
			select {
			case <-d.ready:
			case <-ctx.Done():
				return erofs.Attr{}, false
			}
			if d.load() != nil {
				return erofs.Attr{}, false
			}
			if attr, found, decided := d.find(path); decided {
				return attr, found
			}
		}
		return erofs.Attr{}, false
	}
}
