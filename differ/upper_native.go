package differ

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"slices"
)

// nativeSink makes a native layer of changes.
type nativeSink struct {
	ctx      context.Context
	ing      *ingest
	chunk    int64     // files of this many bytes and more are stored in chunks of their own
	identity hash.Hash // of all that the image will hold
}

// writeNative writes the changes in u as a native layer.
func writeNative(ctx context.Context, u upperDir, w io.Writer, cfg Config) (written, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return written{}, err
	}
	st, err := newStore(ctx, cfg)
	if err != nil {
		return written{}, err
	}
	s := &nativeSink{ctx: ctx, ing: newIngest(st, nil), chunk: cfg.ChunkSize, identity: sha256.New()}
	res, err := s.write(u, st, w, cfg)
	if err = errors.Join(err, st.close()); err != nil {
		return written{}, err
	}
	return written{diffID: res.DiffID, annotations: res.Descriptor.Annotations}, nil
}

func (s *nativeSink) write(u upperDir, st *store, w io.Writer, cfg Config) (Result, error) {
	err := u.walk(s.ctx, s.add)
	if err == nil {
		err = s.ing.marks.apply(s.ing.b)
	}
	if ferr := st.finish(); ferr != nil {
		err = ferr
	}
	if err != nil {
		return Result{}, err
	}
	for _, r := range st.runs {
		s.number(r.off, r.len)
	}
	for _, f := range st.frames {
		s.identity.Write(f.sum[:])
	}
	return writeBlob(s.ctx, s.ing, st, [sha256.Size]byte(s.identity.Sum(nil)), w, cfg)
}

// add enters a change as it is: overlayfs' form is what layers have.
func (s *nativeSink) add(c *change) error {
	s.note(c)
	if c.gone {
		s.ing.marks.whiteout(c.path)
		return nil
	}
	var data io.Reader
	if c.data != nil {
		data = c.data
		if c.hdr.Size < s.chunk { // of longer ones the stored chunks count
			data = io.TeeReader(c.data, s.identity)
		}
	}
	if err := s.ing.file(s.ctx, &c.hdr, c.path, data); err != nil {
		return err
	}
	if c.opaque {
		s.ing.marks.opaque(c.path)
	}
	return nil
}

// note adds everything but data to the identity.
func (s *nativeSink) note(c *change) {
	h := &c.hdr
	fmt.Fprintf(s.identity, "%q %t %t %d %q\n", c.path, c.gone, c.opaque, h.Typeflag, h.Linkname)
	s.number(h.Mode, int64(h.Uid), int64(h.Gid), h.Size, h.Devmajor, h.Devminor)
	if !c.gone {
		s.number(h.ModTime.Unix(), int64(h.ModTime.Nanosecond()))
	}
	for _, k := range slices.Sorted(maps.Keys(h.PAXRecords)) {
		fmt.Fprintf(s.identity, "%q=%q\n", k, h.PAXRecords[k])
	}
}

func (s *nativeSink) number(ns ...int64) {
	for _, n := range ns {
		s.identity.Write(binary.LittleEndian.AppendUint64(nil, uint64(n)))
	}
}
