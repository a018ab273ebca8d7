package remote

import (
	"context"
	"io"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// Limiter bounds the requests of a process and of each registry. One Limiter
// serves many blobs.
type Limiter struct {
	total   *semaphore.Weighted
	perHost int64
	mu      sync.Mutex
	hosts   map[string]*semaphore.Weighted
}

// NewLimiter allows total requests at once, perHost of them to one registry;
// 0 means 64 and 32.
func NewLimiter(total, perHost int) *Limiter {
	return &Limiter{
		total:   semaphore.NewWeighted(int64(orDefault(total, 64))),
		perHost: int64(orDefault(perHost, 32)),
		hosts:   make(map[string]*semaphore.Weighted),
	}
}

// acquire takes a slot; the returned function gives it back.
func (l *Limiter) acquire(ctx context.Context, host string) (func(), error) {
	l.mu.Lock()
	own, ok := l.hosts[host]
	if !ok {
		own = semaphore.NewWeighted(l.perHost)
		l.hosts[host] = own
	}
	l.mu.Unlock()
	// The host's slot first: a busy registry must not hold the slots of others.
	if err := own.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	if err := l.total.Acquire(ctx, 1); err != nil {
		own.Release(1)
		return nil, err
	}
	return func() { l.total.Release(1); own.Release(1) }, nil
}

// Limit returns b with each request waiting for a slot of l under the name
// host, which is the registry's name in the image reference. A slot is held
// while the function that takes the bytes runs: that function must not read
// from a blob of the same Limiter, or all of them may wait for each other.
func Limit(b Blob, l *Limiter, host string) Blob { return &limited{Blob: b, l: l, host: host} }

type limited struct {
	Blob
	l    *Limiter
	host string
}

// ReadAt implements Blob.
func (b *limited) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	release, err := b.l.acquire(ctx, b.host)
	if err != nil {
		return 0, err
	}
	defer release()
	return b.Blob.ReadAt(ctx, p, off)
}

// ReadExtents implements Blob.
func (b *limited) ReadExtents(ctx context.Context, es []chunk.Extent, fn func(i int, r io.Reader) error) error {
	one := func(ctx context.Context, i int) error {
		release, err := b.l.acquire(ctx, b.host)
		if err != nil {
			return err
		}
		defer release()
		return b.Blob.ReadExtents(ctx, es[i:i+1], func(_ int, r io.Reader) error { return fn(i, r) })
	}
	if err := checkExtents(es, b.Size()); err != nil {
		return err
	}
	if len(es) == 1 {
		return one(ctx, 0)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(maxPlainRequests)
	for i := range es {
		g.Go(func() error { return one(ctx, i) })
	}
	return g.Wait()
}
