package remote

import (
	"context"
	"errors"
	"fmt"
	"io"

	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// blob is a registry blob without policy: each range is one request at a time,
// failing over between hosts. Retries over time, merging and limits are decorators.
type blob struct {
	res    *Resolver
	repos  []*repo
	digest digest.Digest
	size   int64
	health health
}

var _ Blob = (*blob)(nil)

func (b *blob) Digest() digest.Digest { return b.digest }

func (b *blob) Size() int64 { return b.size }

// ReadAt implements Blob. On error the count says how many bytes from the
// start of p are good, which lets a retry go on from there.
func (b *blob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := checkExtent(chunk.Extent{Off: off, Len: int64(len(p))}, b.size); err != nil {
		return 0, err
	}
	if len(p) == 0 {
		return 0, nil
	}
	s := &stream{b: b, ctx: ctx, off: off, end: off + int64(len(p))}
	defer s.close()
	return io.ReadFull(s, p)
}

// ReadExtents implements Blob with one request per extent, all at once.
func (b *blob) ReadExtents(ctx context.Context, es []chunk.Extent, fn func(i int, r io.Reader) error) error {
	if err := checkExtents(es, b.size); err != nil {
		return err
	}
	if len(es) == 1 {
		return b.readExtent(ctx, es[0], 0, fn)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(maxPlainRequests)
	for i, e := range es {
		g.Go(func() error { return b.readExtent(ctx, e, i, fn) })
	}
	return g.Wait()
}

// maxPlainRequests bounds the requests of one ReadExtents without decorators.
const maxPlainRequests = 8

func (b *blob) readExtent(ctx context.Context, e chunk.Extent, i int, fn func(i int, r io.Reader) error) error {
	s := &stream{b: b, ctx: ctx, off: e.Off, end: e.End()}
	defer s.close()
	err := fn(i, s)
	if err == nil {
		return nil
	}
	if s.err != nil {
		// The reader failed, so whatever fn made of that is not its own verdict.
		return s.err
	}
	var corrupt *chunk.CorruptError
	if s.last != nil && errors.As(err, &corrupt) && corrupt.Origin == chunk.OriginRegistry {
		b.health.penalise(s.last.id(), err)
	}
	return err
}

// endpoints lists every host of every source, best first.
func (b *blob) endpoints() ([]*endpoint, error) {
	var es []*endpoint
	var errs []error
	for _, r := range b.repos {
		hosts, _, err := r.list()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, h := range hosts {
			es = append(es, &endpoint{res: b.res, repo: r, key: hostKey(h), rest: "blobs/" + b.digest.String()})
		}
	}
	if len(es) == 0 {
		return nil, errors.Join(errs...)
	}
	return b.health.order(es), nil
}

func checkExtent(e chunk.Extent, size int64) error {
	if e.Off < 0 || e.Len < 0 || e.Off > size || e.Len > size-e.Off {
		return fmt.Errorf("%w: %d+%d of %d bytes", ErrRange, e.Off, e.Len, size)
	}
	return nil
}

// checkExtents also wants them sorted and apart, as the Blob contract says.
func checkExtents(es []chunk.Extent, size int64) error {
	var at int64
	for _, e := range es {
		if err := checkExtent(e, size); err != nil {
			return err
		}
		if e.Off < at {
			return fmt.Errorf("%w: extents overlap or are not sorted at %d", ErrRange, e.Off)
		}
		at = e.End()
	}
	return nil
}
