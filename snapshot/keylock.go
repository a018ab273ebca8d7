package snapshot

import (
	"context"
	"sync"
)

// keylock is a lock per string that gives up with its context. The zero value
// is ready for use.
type keylock struct {
	mu    sync.Mutex
	slots map[string]*slot
}

type slot struct {
	sem  chan struct{}
	refs int
}

// lock waits for the lock of key and returns what unlocks it.
func (l *keylock) lock(ctx context.Context, key string) (func(), error) {
	l.mu.Lock()
	if l.slots == nil {
		l.slots = make(map[string]*slot)
	}
	s := l.slots[key]
	if s == nil {
		s = &slot{sem: make(chan struct{}, 1)}
		l.slots[key] = s
	}
	s.refs++
	l.mu.Unlock()

	select {
	case s.sem <- struct{}{}:
		return func() {
			<-s.sem
			l.drop(key, s)
		}, nil
	case <-ctx.Done():
		l.drop(key, s)
		return nil, context.Cause(ctx)
	}
}

func (l *keylock) drop(key string, s *slot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.refs--; s.refs == 0 {
		delete(l.slots, key)
	}
}
