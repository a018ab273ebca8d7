package cachefiles

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
)

// guard is one cookie of one mount: what the kernel asks for by its key.
type guard struct {
	key     string
	layerID string

	ready  chan struct{} // closed when source is set, or nobody will set it
	once   sync.Once
	source *source // nil until ready, and after if nobody adopted it

	asked     chan struct{} // closed when the kernel's first OPEN was answered
	askedOnce sync.Once

	// Under Driver.mu.
	objects int           // that are open
	idle    chan struct{} // closed when objects falls to 0
	refusal error         // of its last OPEN
}

func newGuard(key string, s *source) *guard {
	_, id, _ := splitKey(key)
	g := &guard{key: key, layerID: id, ready: make(chan struct{}), asked: make(chan struct{})}
	if s != nil {
		g.settle(s)
	}
	return g
}

// settle says what it is; nil that nobody will.
func (g *guard) settle(s *source) {
	g.once.Do(func() {
		g.source = s
		close(g.ready)
	})
}

// errNotAdopted is the answer to requests of layers that a predecessor mounted and
// nobody adopted.
var errNotAdopted = errors.New("no one adopted the layer")

// await returns the source once it is known.
func (g *guard) await(ctx context.Context) (*source, error) {
	select {
	case <-g.ready:
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for adoption: %w", ctx.Err())
	}
	if g.source == nil {
		return nil, errNotAdopted
	}
	return g.source, nil
}

// orphan reports whether nobody adopted it, nor will.
func (g *guard) orphan() bool {
	select {
	case <-g.ready:
		return g.source == nil
	default:
		return false
	}
}

// object is a cookie that the kernel has opened: file is where its data goes.
type object struct {
	kept
	guard *guard
	file  *os.File
}
