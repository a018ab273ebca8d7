package converter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// Some tools leave out of a layer the directories that lower layers have, as
// Bazel's rules do. Unpacking such a layer keeps the lower directory's owner,
// mode and time; an EROFS layer must name the directory, so it must name it
// with those attributes. They are looked up in the metadata of the layers below,
// which is parsed only if a layer above asks. Of a native layer that is carried over
// the whole blob is read then: its metadata alone could not be held against its digest.

// dirs answers for the directories of one converted layer.
type dirs struct {
	ready     chan struct{} // closed when the layer is done or failed
	meta      []byte        // the start of the blob, which holds all metadata
	form      differ.Form
	metaSize  int64
	imageSize int64
	whole     func(context.Context) (*ImageData, error) // of a layer that is carried over

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

// load parses the metadata, once. A layer that nothing is known of has no entries.
func (d *dirs) load(ctx context.Context) error {
	d.once.Do(func() {
		switch {
		case d.meta != nil:
			d.entries, d.err = d.parse()
			d.meta = nil
		case d.whole != nil:
			data, err := d.whole(ctx)
			if data == nil || err != nil {
				d.err = err
				return
			}
			d.entries, d.err = listDirs(data.Tree)
			d.err = errors.Join(d.err, data.Close())
		}
	})
	return d.err
}

// parse reads the metadata that keep or restore remembered.
func (d *dirs) parse() (map[string]dirEntry, error) {
	image := d.meta
	if d.form == differ.Zstd {
		dec, err := zstd.NewReader(bytes.NewReader(d.meta))
		if err != nil {
			return nil, err
		}
		defer dec.Close()
		image = make([]byte, d.metaSize)
		if _, err := io.ReadFull(dec, image); err != nil {
			return nil, err
		}
	}
	policy := erofs.DefaultPolicy(d.imageSize)
	policy.MetaHint = int64(len(image)) // what follows is not here
	parsed, err := erofs.Parse(bytes.NewReader(image), policy)
	if err != nil {
		return nil, err
	}
	return listDirs(parsed.Tree)
}

// wholeOf returns what reads a native layer of the source for its directories. What
// the strict parser refuses is nil, after a warning.
func (c *conversion) wholeOf(desc ocispec.Descriptor) func(context.Context) (*ImageData, error) {
	return func(ctx context.Context) (*ImageData, error) {
		data, err := OpenWhole(ctx, c.src, desc, c.opts.WorkDir)
		var refused *erofs.RefusedError
		if errors.As(err, &refused) {
			c.warn("layer %s cannot be read, so that directories of it that a layer above names only as parents have mode 0755 and are root's: %v",
				desc.Digest, err)
			return nil, nil
		}
		return data, err
	}
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
// earlier and wait only for still earlier ones.
func implied(ctx context.Context, below []*job) func(string) (erofs.Attr, bool, error) {
	return func(path string) (erofs.Attr, bool, error) {
		for i := len(below) - 1; i >= 0; i-- {
			d := &below[i].dirs
			select {
			case <-d.ready:
			case <-ctx.Done():
				return erofs.Attr{}, false, context.Cause(ctx)
			}
			if err := d.load(ctx); err != nil {
				return erofs.Attr{}, false, fmt.Errorf("layer %s: %w", below[i].desc.Digest, err)
			}
			if attr, found, decided := d.find(path); decided {
				return attr, found, nil
			}
		}
		return erofs.Attr{}, false, nil
	}
}
