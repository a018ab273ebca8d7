package cachefiles

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/lazyerofs/lazyerofs/fs/driver"
)

// source is what the bytes of one cookie are: a metadata image, or the image data
// of a layer with an area of zeros behind it.
type source struct {
	layer driver.Layer
	meta  *os.File // nil: the image data of layer
	data  int64    // bytes of meta or of the image data
	size  int64    // with the zeros
}

// resident reports whether a range is there without a fill.
func (s *source) resident(off, n int64) bool {
	n = min(n, s.data-off)
	return s.meta != nil || n <= 0 || s.layer.Resident(off, n)
}

// readAt reads verified bytes, all of them or an error.
func (s *source) readAt(ctx context.Context, p []byte, off int64) error {
	have := max(min(int64(len(p)), s.data-off), 0)
	clear(p[have:])
	if have == 0 {
		return nil
	}
	var n int
	var err error
	if s.meta != nil {
		n, err = s.meta.ReadAt(p[:have], off)
	} else {
		n, err = s.layer.ReadAt(ctx, p[:have], off)
	}
	if int64(n) == have {
		return nil
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("reading [%d, +%d) of layer %s: %w", off, have, s.layer.ID(), err)
}

// plan is what one mount serves: a cookie key and a source for each, the primary
// one first.
type plan struct {
	keys    []string
	sources []*source
	scratch *os.File // metadata that was made here, or nil
}

func (p *plan) add(key string, s *source) {
	p.keys, p.sources = append(p.keys, key), append(p.sources, s)
}

// close lets go of what was made for the mount.
func (p *plan) close() error {
	if p.scratch == nil {
		return nil
	}
	return p.scratch.Close()
}

// newPlan is the plan of a mount of l, whose cookies begin with base. dir is where
// metadata is written that has to be made. The same layer gives the same plan in
// another process.
func newPlan(dir, base string, l driver.Layer) (_ *plan, err error) {
	p := &plan{}
	data := &source{layer: l}
	if data.data, err = sizeOf(l.Data()); err != nil {
		return nil, err
	}
	data.size = data.data
	meta := l.Meta()
	solid, err := withoutHoles(l, data.data)
	if err != nil {
		return nil, fmt.Errorf("looking for holes in layer %s: %w", l.ID(), err)
	}
	if solid != nil {
		if p.scratch, err = solid.write(dir); err != nil {
			return nil, fmt.Errorf("writing metadata without holes for layer %s: %w", l.ID(), err)
		}
		meta, data.size = p.scratch, solid.end
	}
	if meta != nil {
		s := &source{layer: l, meta: meta}
		if s.data, err = sizeOf(meta); err != nil {
			return nil, err
		}
		s.size = s.data
		p.add(base+metaSuffix, s)
	}
	p.add(base+dataSuffix, data)
	return p, nil
}

func sizeOf(f *os.File) (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("asking for the size of %s: %w", f.Name(), err)
	}
	return st.Size(), nil
}
