package driver

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/containerd/log"
	"golang.org/x/time/rate"
)

// Denials logs reads that were answered with an error. A reader on a full disk
// asks for every page again, so most of many lines are left out and counted. It is
// safe for concurrent use.
type Denials struct {
	some  rate.Sometimes
	quiet atomic.Int64 // denials since the last line
}

// denialsFirst lines are always written, then one in each denialsEvery.
const (
	denialsFirst = 10
	denialsEvery = time.Second
)

// NewDenials returns a log of denied reads.
func NewDenials() *Denials {
	return &Denials{some: rate.Sometimes{First: denialsFirst, Interval: denialsEvery}}
}

// Note logs that a read of image data [off, off+n) of a layer was denied, and why.
func (d *Denials) Note(ctx context.Context, layerID string, off, n int64, why error) {
	d.quiet.Add(1)
	d.some.Do(func() {
		l := log.G(ctx).WithError(why).WithField("layer", layerID)
		if more := d.quiet.Swap(0) - 1; more > 0 {
			l = l.WithField("not_logged", more)
		}
		l.Warnf("denying a read of [%d, +%d)", off, n)
	})
}
