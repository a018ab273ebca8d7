package remote

import (
	"context"
	"fmt"
	"time"
)

// Timeouts bound one request. There is no limit on a whole body: a slow link
// that moves is not a failure.
type Timeouts struct {
	// Header bounds everything before the first byte of the body, token fetch
	// and redirects included; 0 means 15 s.
	Header time.Duration
	// Progress bounds how long ProgressBytes of body, or its rest, may take;
	// 0 means 10 s.
	Progress time.Duration
}

// progressBytes is what must arrive within Timeouts.Progress. A host that
// trickles a byte now and then counts as hanging.
const progressBytes = 4096

func (t Timeouts) withDefaults() Timeouts {
	if t.Header <= 0 {
		t.Header = 15 * time.Second
	}
	if t.Progress <= 0 {
		t.Progress = 10 * time.Second
	}
	return t
}

// watch ends a request that stands still, by cancelling its context.
type watch struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	limits Timeouts
	since  int // bytes since the timer was set
}

// newWatch starts with the header limit and returns the request's context.
// stop must be called.
func newWatch(ctx context.Context, limits Timeouts) (context.Context, *watch) {
	limits = limits.within(ctx)
	w := &watch{limits: limits}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	w.timer = time.AfterFunc(limits.Header, func() {
		w.cancel(&stallError{what: "answer", after: limits.Header})
	})
	return w.ctx, w
}

// body switches to the progress limit: headers have come.
func (w *watch) body() {
	w.timer.Stop()
	w.timer = time.AfterFunc(w.limits.Progress, func() {
		w.cancel(&stallError{what: "progress", after: w.limits.Progress})
	})
	w.since = 0
}

// moved counts n bytes that arrived.
func (w *watch) moved(n int) {
	if w.since += n; w.since >= progressBytes {
		w.since = 0
		w.timer.Reset(w.limits.Progress)
	}
}

// stop releases the timer and ends the request.
func (w *watch) stop() {
	w.timer.Stop()
	w.cancel(context.Canceled)
}

// stallError says which limit a request met.
type stallError struct {
	what  string
	after time.Duration
}

func (e *stallError) Error() string { return fmt.Sprintf("no %s for %s", e.what, e.after) }

// Timeout makes it a timeout for callers that look for one.
func (e *stallError) Timeout() bool { return true }

// Is makes it temporary.
func (e *stallError) Is(target error) bool { return target == ErrUnavailable }
