package remote

import (
	"errors"
	"sync"
	"time"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// Cool-down of a host that failed for a blob: it goes to the end of the line,
// and is still asked when no other host gives the bytes.
const (
	coolTemporary = 10 * time.Second
	coolPermanent = 5 * time.Minute
)

// health remembers which hosts failed for one blob.
type health struct {
	mu    sync.Mutex
	until map[string]time.Time
}

// penalise puts the host behind the others for a while.
func (h *health) penalise(key string, err error) {
	d := coolTemporary
	var corrupt *chunk.CorruptError
	if errors.Is(err, ErrGone) || errors.Is(err, ErrNotRanged) || errors.As(err, &corrupt) {
		d = coolPermanent
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.until == nil {
		h.until = make(map[string]time.Time)
	}
	h.until[key] = time.Now().Add(d)
}

// order returns es with those that failed lately at the end, otherwise in the
// order that the configuration gives.
func (h *health) order(es []*endpoint) []*endpoint {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.until) == 0 {
		return es
	}
	now := time.Now()
	good := make([]*endpoint, 0, len(es))
	var bad []*endpoint
	for _, e := range es {
		if t, ok := h.until[e.id()]; ok && now.Before(t) {
			bad = append(bad, e)
		} else {
			good = append(good, e)
		}
	}
	return append(good, bad...)
}
