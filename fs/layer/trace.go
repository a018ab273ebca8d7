package layer

import (
	"math/bits"
	"sync/atomic"
	"time"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// Kind says why something was fetched.
type Kind uint8

const (
	// KindDemand marks a read that waits, with its read-ahead.
	KindDemand Kind = iota
	// KindPrepare marks what must be resident before the mount.
	KindPrepare
	// KindWarm marks what was asked for ahead of time.
	KindWarm
	// KindFill marks the background fill of the whole layer.
	KindFill
)

// String returns the kind as it is written in metrics and traces.
func (k Kind) String() string {
	switch k {
	case KindDemand:
		return "demand"
	case KindPrepare:
		return "prepare"
	case KindWarm:
		return "warm"
	case KindFill:
		return "fill"
	}
	return "unknown"
}

// Event is one batch of chunks that was fetched.
type Event struct {
	// Layer is the ID of the layer.
	Layer string
	Kind  Kind
	// When is when the batch began and Duration how long it took until its last
	// chunk was in the data file.
	When     time.Time
	Duration time.Duration
	// Off and Len span the batch in image data, chunks of others between its own
	// included.
	Off, Len int64
	// Chunks is how many chunks were asked for and Bytes how many stored bytes.
	Chunks int
	Bytes  int64
	// Err is the first error of a chunk; nil when all arrived.
	Err error
}

// Stats counts what a Layer did since New.
type Stats struct {
	// Batches is how many times the registry client was asked.
	Batches int64
	// FetchedBytes is how many stored bytes were asked of it.
	FetchedBytes int64
	// AskedBytes is how many distinct bytes of image data the drivers asked for,
	// in whole blocks.
	AskedBytes int64
	// MissedBytes is how much image data misses made resident; ReadAheadBytes is
	// the part of it that nobody waited for.
	MissedBytes, ReadAheadBytes int64
	// Corrupt is how many chunks did not match their digest.
	Corrupt int64
}

type counters struct {
	batches, fetched, missed, readAhead, corrupt atomic.Int64
}

// Stats returns the counters.
func (l *Layer) Stats() Stats {
	return Stats{
		Batches: l.stats.batches.Load(), FetchedBytes: l.stats.fetched.Load(), AskedBytes: l.asked.bytes(),
		MissedBytes: l.stats.missed.Load(), ReadAheadBytes: l.stats.readAhead.Load(), Corrupt: l.stats.corrupt.Load(),
	}
}

// report tells the trace hook of a batch that ended.
func (l *Layer) report(b *batch) {
	if l.trace == nil {
		return
	}
	e := Event{Layer: l.id, Kind: b.kind, When: b.begun, Duration: time.Since(b.begun), Chunks: len(b.calls)}
	for _, c := range b.calls {
		e.Bytes += l.plan.Data.At(c.chunk).Blob.Len
		if e.Err == nil {
			e.Err = c.err
		}
	}
	e.Off = l.plan.Data.At(b.calls[0].chunk).Data.Off
	e.Len = l.plan.Data.At(b.calls[len(b.calls)-1].chunk).Data.End() - e.Off
	l.trace(e)
}

// askedMap remembers which blocks were ever asked for, one bit each, so that
// read-ahead can be held against its use. It takes no lock.
type askedMap struct {
	words []atomic.Uint64
	size  int64
	count *atomic.Int64 // blocks
}

func newAskedMap(size int64) askedMap {
	blocks := (size + chunk.BlockSize - 1) / chunk.BlockSize
	return askedMap{words: make([]atomic.Uint64, (blocks+63)/64), size: size, count: new(atomic.Int64)}
}

// any reports whether a block of e was asked for.
func (a *askedMap) any(e chunk.Extent) bool {
	first, last := e.Off/chunk.BlockSize, (e.End()-1)/chunk.BlockSize
	for b := first; b <= last; b++ {
		w := a.words[b/64].Load()
		if w == 0 {
			b |= 63 // on to the next word
			continue
		}
		if w>>(b%64)&1 != 0 {
			return true
		}
	}
	return false
}

// mark notes image data [off, off+n); what is outside is ignored.
func (a *askedMap) mark(off, n int64) {
	if off < 0 || n <= 0 || off >= a.size {
		return
	}
	end := a.size - 1
	if n-1 < end-off {
		end = off + n - 1
	}
	first, last := off/chunk.BlockSize, end/chunk.BlockSize
	for w := first / 64; w <= last/64; w++ {
		mask := ^uint64(0)
		if w == first/64 {
			mask &= ^uint64(0) << (first % 64)
		}
		if w == last/64 {
			mask &= ^uint64(0) >> (63 - last%64)
		}
		if a.words[w].Load()&mask == mask {
			continue
		}
		if fresh := mask &^ a.words[w].Or(mask); fresh != 0 {
			a.count.Add(int64(bits.OnesCount64(fresh)))
		}
	}
}

func (a *askedMap) bytes() int64 { return min(a.count.Load()*chunk.BlockSize, a.size) }
