package fusesession

import (
	"context"
	"sync/atomic"
	"time"
)

// dyingEvery is how often who waits for an answer is looked at.
const dyingEvery = 250 * time.Millisecond

// ReaderContext is the context of a read by thread pid, which ends with parent, or
// when the reader turns out to be killed. stop ends the watch and says whether it
// was.
//
// An interrupt (cancel) is a reason to look at once, and nothing to wait for. The
// kernel sends one for the first signal only, which may be harmless. It is lost if it
// is taken by another thread before this request is known to go-fuse, whose EAGAIN
// would have the kernel send it again without end. And a successor of the process
// that took it never hears of it.
func ReaderContext(parent context.Context, cancel <-chan struct{}, pid uint32) (ctx context.Context, stop func() bool) {
	ctx, end := context.WithCancel(parent)
	var killed atomic.Bool
	watched := make(chan struct{})
	go func() { // ends with ctx
		defer close(watched)
		t := time.NewTicker(dyingEvery)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-cancel:
				cancel = nil
			case <-t.C:
			}
			if Dying(pid) {
				killed.Store(true)
				end()
				return
			}
		}
	}()
	return ctx, func() bool {
		end()
		<-watched
		return killed.Load()
	}
}
