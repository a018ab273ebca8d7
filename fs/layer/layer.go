package layer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"github.com/lazyerofs/lazyerofs/fs/cache"
	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/format"
	"github.com/lazyerofs/lazyerofs/fs/remote"
)

// ErrClosed marks a read of a layer that was closed.
var ErrClosed = errors.New("layer is closed")

// Config says what a Layer is made of. Plan, Blob and File are needed.
type Config struct {
	Plan *format.Plan
	Blob remote.Blob
	// File is the layer's data file, opened with Plan.Data. The Layer owns it from
	// a successful New on.
	File *cache.File
	// Meta is the local file that holds Plan.Meta; nil exactly when Plan.Meta is.
	// The Layer owns it like File.
	Meta *os.File
	// Slots bounds how many chunks are decoded at once, over all layers that share
	// it; nil gives the layer as many of its own as there are processors.
	Slots Slots
	// MaxReadAhead is the most image data, in bytes, that one miss fetches beyond
	// what was asked for. 0 means DefaultMaxReadAhead, below 0 none.
	MaxReadAhead int64
	// ReadAheadWaste bounds what is fetched ahead and never asked for, as a share
	// of the distinct bytes asked for; 0 means DefaultReadAheadWaste. A small
	// amount is free.
	ReadAheadWaste float64
	// Seal turns fs-verity on for the data file once the layer is complete and nobody
	// can write to it any more. Where that cannot be the layer does without.
	Seal bool
	// Trace, when set, is told of every batch that ended. It is called from
	// several goroutines at once and must be quick.
	Trace func(Event)
	// Finished, when set, is told once that every byte is resident and durable:
	// nil, or why the layer as a whole is not what its descriptor says. Close waits
	// for it, so it must not call Close.
	Finished func(error)
}

// Slots bounds concurrent decoding.
type Slots chan struct{}

// NewSlots returns Slots for n decodes at once.
func NewSlots(n int) Slots { return make(Slots, max(n, 1)) }

// Layer is one lazily filled layer. It is what driver.Layer asks for. Its
// methods are safe for concurrent use.
type Layer struct {
	id    string
	plan  *format.Plan
	blob  remote.Blob
	file  *cache.File
	meta  *os.File
	slots Slots

	trace    func(Event)
	finished func(error)
	seal     bool
	whole    chan struct{} // capacity 1: wakes awaitImage
	asked    askedMap
	stats    counters

	ctx      context.Context // ends with Close
	cancel   context.CancelFunc
	tasks    sync.WaitGroup
	complete chan struct{}

	mu     sync.Mutex // guards the following; never held while anything waits
	calls  map[int]*call
	ahead  *readahead
	demand int           // calls of Ensure that wait
	idle   chan struct{} // closed while demand is 0
	closed bool
}

// New returns the Layer that c describes and starts the goroutines that wait for it
// to become complete. Close ends them.
func New(c Config) (*Layer, error) {
	if (c.Plan.Meta == nil) != (c.Meta == nil) {
		return nil, fmt.Errorf("making layer %s: its plan and its files disagree about local metadata", c.Blob.Digest())
	}
	if c.File.Size() != c.Plan.Data.Size() {
		return nil, fmt.Errorf("making layer %s: the data file is for %d bytes, the plan has %d", c.Blob.Digest(), c.File.Size(), c.Plan.Data.Size())
	}
	if c.Slots == nil {
		c.Slots = NewSlots(runtime.GOMAXPROCS(0))
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &Layer{
		id: layerID(c.Blob), plan: c.Plan, blob: c.Blob, file: c.File, meta: c.Meta, slots: c.Slots,
		trace: c.Trace, finished: c.Finished, seal: c.Seal, whole: make(chan struct{}, 1), asked: newAskedMap(c.Plan.Data.Size()),
		ctx: ctx, cancel: cancel, complete: make(chan struct{}),
		calls: map[int]*call{}, ahead: newReadahead(c.MaxReadAhead, c.ReadAheadWaste), idle: make(chan struct{}),
	}
	close(l.idle)
	if closed(c.File.Complete()) && (c.Plan.Whole == "" || c.File.Verified()) {
		// From its first moment: a driver that adopts a mount asks once, and takes a
		// layer that is not complete and that nobody guarded for one that may be wrong.
		close(l.complete)
	}
	l.tasks.Go(l.awaitComplete)
	if c.Plan.Verity != nil {
		l.tasks.Go(l.awaitImage)
	}
	return l, nil
}

// maxID is the longest ID that driver.Layer allows.
const maxID = 100

// layerID is the blob's digest in the characters that driver.Layer allows, cut
// to its length: 90 hexadecimal digits of a SHA-512 name it as well as all.
func layerID(b remote.Blob) string {
	d := b.Digest()
	id := d.Algorithm().String() + "-" + d.Encoded()
	return id[:min(len(id), maxID)]
}

// ID names the layer: algorithm, "-" and digest of the blob.
func (l *Layer) ID() string { return l.id }

// Meta returns the local EROFS image that has Data as its device 1, or nil.
func (l *Layer) Meta() *os.File { return l.meta }

// Data returns the writer's descriptor of the data file.
func (l *Layer) Data() *os.File { return l.file.Data() }

// Size returns the length of the image data in bytes.
func (l *Layer) Size() int64 { return l.file.Size() }

// Verity describes the hash tree with which the image data ends; nil when there is
// none. See driver.Treed.
func (l *Layer) Verity() *chunk.Verity { return l.plan.Verity }

// Progress returns how many bytes of image data are resident and how many there
// are.
func (l *Layer) Progress() (resident, total int64) { return l.file.Progress() }

// Resident reports whether image data [off, off+n) is in the data file. It
// takes no lock and does not allocate. It notes what was asked for.
func (l *Layer) Resident(off, n int64) bool {
	l.asked.mark(off, n)
	return l.file.Resident(off, n)
}

// Complete is closed once every byte is in the data file, durable, and verified
// by chunk and, where the descriptor allows it, as a whole.
func (l *Layer) Complete() <-chan struct{} { return l.complete }

// awaitComplete checks a layer as a whole when its last chunk has arrived.
func (l *Layer) awaitComplete() {
	select {
	case <-l.file.Complete():
	case <-l.ctx.Done():
		return
	}
	var err error
	if l.plan.Whole != "" && !l.file.Verified() {
		err = l.file.Verify(l.ctx, l.plan.Whole, l.plan.Tail)
	}
	if l.ctx.Err() != nil {
		return
	}
	if err == nil {
		if !closed(l.complete) {
			close(l.complete)
		}
	} else {
		l.stats.corrupt.Add(1)
	}
	if l.finished != nil {
		l.finished(err)
	}
	if l.seal && err == nil {
		l.sealData()
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Close cancels what is being fetched, waits for it to end and closes the data
// file, bringing its bitmap to disk within ctx. The mount must be gone or be
// served by nobody's call to this Layer.
func (l *Layer) Close(ctx context.Context) error {
	l.mu.Lock()
	again := l.closed
	l.closed = true
	l.mu.Unlock()
	if again {
		return nil
	}
	l.cancel()
	l.tasks.Wait()
	err := l.file.Close(ctx)
	if l.meta != nil {
		err = errors.Join(err, l.meta.Close())
	}
	if err != nil {
		return fmt.Errorf("closing layer %s: %w", l.id, err)
	}
	return nil
}
