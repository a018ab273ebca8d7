package differ

import (
	"context"
	"errors"
	"io"
)

// nativeSink makes a native layer of changes.
type nativeSink struct {
	ctx context.Context
	ing *ingest
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
	s := &nativeSink{ctx: ctx, ing: newIngest(st, nil)}
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
	return writeBlob(s.ctx, s.ing, st, w, cfg, nil)
}

// add enters a change as it is: overlayfs' form is what layers have.
func (s *nativeSink) add(c *change) error {
	if c.gone {
		return s.ing.whiteout(c.path)
	}
	if err := s.ing.file(s.ctx, &c.hdr, c.path, c.data); err != nil {
		return err
	}
	if c.opaque {
		return s.ing.opaque(c.path)
	}
	return nil
}
