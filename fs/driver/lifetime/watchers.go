package lifetime

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Watchers are the goroutines of a driver that wait for the end of something, until
// the driver's Shutdown. They are safe for concurrent use.
type Watchers struct {
	mu       sync.Mutex
	stopped  bool
	stopping chan struct{}
	running  sync.WaitGroup
}

// NewWatchers returns Watchers of which none runs.
func NewWatchers() *Watchers { return &Watchers{stopping: make(chan struct{})} }

// Stopping is closed by Stop.
func (w *Watchers) Stopping() <-chan struct{} { return w.stopping }

// Stopped reports whether Stop was called. It takes no lock.
func (w *Watchers) Stopped() bool { return Closed(w.stopping) }

// Closed reports whether a channel on which nothing is sent, as Layer.Complete, is
// closed.
func Closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Go runs f, which ends when Stopping is closed, in a goroutine; false after Stop.
func (w *Watchers) Go(f func()) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return false
	}
	w.running.Go(f)
	return true
}

// Await waits until it is so; false when Stop came first. The kernel tells nobody,
// so this looks, ever less often.
func (w *Watchers) Await(so func() bool) bool {
	delay := 2 * time.Millisecond
	t := time.NewTimer(delay)
	defer t.Stop()
	for !so() {
		t.Reset(delay)
		select {
		case <-w.stopping:
			return false
		case <-t.C:
		}
		delay = min(2*delay, time.Second)
	}
	return true
}

// Pause keeps a loop that cannot do its work from spinning; false after Stop.
func (w *Watchers) Pause() bool {
	t := time.NewTimer(10 * time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-w.stopping:
		return false
	}
}

// Stop tells all to end. Only the first call does anything, and returns true.
func (w *Watchers) Stop() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return false
	}
	w.stopped = true
	close(w.stopping)
	return true
}

// Wait waits until all have ended, after Stop.
func (w *Watchers) Wait() { w.running.Wait() }

// Finish waits for groups, one after the other, which do the work that was taken.
// When ctx ends first it cancels them, waits on, and says so.
func Finish(ctx context.Context, cancel context.CancelFunc, groups ...*sync.WaitGroup) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, g := range groups {
			g.Wait()
		}
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		cancel()
		<-done
		return fmt.Errorf("finishing the reads in progress: %w", ctx.Err())
	}
}
