package fuseblock

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/lazyerofs/lazyerofs/fs/driver/fusesession"
)

// dyingEvery is how often a reader that was interrupted is looked at: the
// kernel tells of the first signal only, and that one may be harmless.
const dyingEvery = 100 * time.Millisecond

// readerContext is the context of a read by thread pid. It ends with the
// session's, or when the reader, having been interrupted, turns out to be
// killed. stop ends the watch and says whether it was.
func (f *file) readerContext(cancel <-chan struct{}, pid uint32) (ctx context.Context, stop func() bool) {
	ctx, end := context.WithCancel(f.session.Context())
	var killed atomic.Bool
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-ctx.Done():
			return
		case <-cancel:
		}
		t := time.NewTicker(dyingEvery)
		defer t.Stop()
		for {
			if fusesession.Dying(pid) {
				killed.Store(true)
				end()
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
		}
	}()
	return ctx, func() bool {
		end()
		<-watched
		return killed.Load()
	}
}
