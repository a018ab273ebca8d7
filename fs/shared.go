package fs

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/containerd/log"
	"github.com/containerd/stargz-snapshotter/fs/source"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/fs/layer"
)

// closeTimeout bounds how long a layer that nobody uses takes to reach the disk.
const closeTimeout = 30 * time.Second

// shared is one layer for all its mounts.
type shared struct {
	id   digest.Digest
	lock chan struct{} // held while the layer is opened or closed
	refs int           // mounts and callers; guarded by FS.mu

	layer    *layer.Layer       // nil until opened; guarded by lock
	desc     ocispec.Descriptor // as which it was opened; guarded by lock
	early    *layer.Early       // until prepared, on the first opening; guarded by lock
	prepared bool               // guarded by lock
	bad      atomic.Pointer[MountError]
}

// verdict is why the layer may not be used by new containers, or nil.
func (s *shared) verdict() error {
	if bad := s.bad.Load(); bad != nil {
		return bad
	}
	return nil
}

// layerID is the name that package layer gives the layer of a blob.
func layerID(blob digest.Digest) string {
	id := blob.Algorithm().String() + "-" + blob.Encoded()
	return id[:min(len(id), 100)]
}

// prepare makes the layer ready to be mounted, once for all its mounts.
func (s *shared) prepare(ctx context.Context) error {
	select {
	case s.lock <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-s.lock }()
	if s.prepared {
		return nil
	}
	if err := s.layer.Prepare(ctx); err != nil {
		return err
	}
	s.prepared = true
	s.settle()
	return nil
}

// settle ends what was read ahead of the index. The lock of s is held.
func (s *shared) settle() {
	if s.early != nil {
		s.early.Release()
		s.early = nil
	}
}

// acquire returns the open layer of srcs with one more reference.
func (f *FS) acquire(ctx context.Context, srcs []source.Source, labels map[string]string) (*shared, error) {
	id := srcs[0].Target.Digest
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return nil, ErrClosed
	}
	s := f.layers[id]
	if s == nil {
		s = &shared{id: id, lock: make(chan struct{}, 1)}
		f.layers[id] = s
	}
	s.refs++
	f.mu.Unlock()

	select {
	case s.lock <- struct{}{}:
	case <-ctx.Done():
		f.mu.Lock()
		defer f.mu.Unlock()
		if !f.closed { // Close waits for tasks, and closes what is left itself
			f.tasks.Go(func() { f.release(s) })
		}
		return nil, context.Cause(ctx)
	}
	err := f.ready(ctx, s, srcs, labels)
	<-s.lock
	if err != nil {
		f.release(s)
		return nil, err
	}
	return s, nil
}

// ready opens s unless it is open, and checks that it is what labels claim. The
// lock of s is held.
func (f *FS) ready(ctx context.Context, s *shared, srcs []source.Source, labels map[string]string) error {
	if err := s.verdict(); err != nil {
		return err
	}
	if s.layer != nil {
		return f.same(ctx, s, srcs, labels)
	}
	return f.open(ctx, s, srcs, labels)
}

// release drops one reference and closes the layer with the last.
func (f *FS) release(s *shared) {
	s.lock <- struct{}{} // holders of the lock have a deadline or close, which has one
	defer func() { <-s.lock }()
	f.mu.Lock()
	last := s.refs == 1
	f.mu.Unlock()
	if last {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(f.ctx), closeTimeout)
		defer cancel()
		if err := s.close(ctx); err != nil {
			log.G(f.ctx).WithError(err).Warn("closing a layer that nobody uses")
		}
		if s.verdict() != nil {
			f.cleared(s)
		}
	}
	f.drop(s)
}

// drop forgets a reference whose layer is closed or has other users.
func (f *FS) drop(s *shared) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s.refs--; s.refs == 0 && f.layers[s.id] == s {
		delete(f.layers, s.id)
	}
}

// close closes the layer. The lock of s is held.
func (s *shared) close(ctx context.Context) error {
	if s.layer == nil {
		return nil
	}
	s.settle()
	l := s.layer
	s.layer, s.prepared = nil, false
	return l.Close(ctx)
}
