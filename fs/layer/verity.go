package layer

import (
	"errors"
	"time"

	"github.com/containerd/log"

	"github.com/lazyerofs/lazyerofs/fs/cache"
	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

const (
	// treeRetry is how long a hash tree that could not be fetched waits for the next
	// batch to come before it is tried again.
	treeRetry = time.Minute
	// sealFirst and sealLast bound the waits for others to give up their writers: a
	// keeper of descriptors does so when it is told that the layer is complete.
	sealFirst = 20 * time.Millisecond
	sealLast  = time.Minute
)

// awaitImage fetches the hash tree once the image before it is there. No mount reads
// it, but a layer without it is not complete.
func (l *Layer) awaitImage() {
	image := l.plan.ImageSize()
	timer := time.NewTimer(0) // it may be so already
	defer timer.Stop()
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-l.file.Complete():
			return
		case <-l.whole:
		case <-timer.C:
		}
		if !l.file.Resident(0, image) {
			continue
		}
		err := l.Warm(l.ctx, []chunk.Extent{{Off: image, Len: l.plan.Data.Size() - image}})
		if err == nil || l.ctx.Err() != nil {
			return
		}
		log.G(l.ctx).WithError(err).WithField("layer", l.id).Warn("cannot fetch the hash tree of a layer yet")
		timer.Reset(treeRetry)
		select { // what this batch said itself
		case <-l.whole:
		default:
		}
	}
}

// sealData seals the data file once nobody else can write to it.
func (l *Layer) sealData() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for delay := sealFirst; ; delay = min(2*delay, sealLast) {
		select {
		case <-l.ctx.Done():
			return
		case <-timer.C:
		}
		err := l.file.Seal(l.ctx)
		if !errors.Is(err, cache.ErrWriters) {
			if err != nil && l.ctx.Err() == nil {
				log.G(l.ctx).WithError(err).WithField("layer", l.id).Warn("a complete layer goes without fs-verity")
			}
			return
		}
		timer.Reset(delay)
	}
}
