package layer

import (
	"slices"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// Defaults of read-ahead.
const (
	// DefaultMaxReadAhead is in bytes of image data.
	DefaultMaxReadAhead = 4 << 20
	// DefaultReadAheadWaste bounds image data that was fetched ahead and never
	// asked for, as a share of the distinct bytes asked for.
	DefaultReadAheadWaste = 0.3
)

// freeWaste is what may be fetched ahead in vain, in bytes of image data, before
// anything was proved: without it a program that starts from many small files
// would be served one round trip at a time until it had read enough to earn an
// allowance, and then hardly miss any more.
const freeWaste = 4 << 20

// firstAhead is what follows a miss that continues no stream, in bytes of image
// data: a whole chunk, and the short one that often comes after it, the tail of a
// file or a few small files.
const firstAhead = 416 << 10

// skipped is how many chunks a reader may leave out and still go forward: files
// that it did not want, such as the tests of the package that it reads.
const skipped = 3

// streams is how many sequential readers of one layer are told apart.
const streams = 8

// stream is a reader that was seen to go forward.
type stream struct {
	next   int   // the chunk that it misses next
	window int64 // bytes of image data to fetch ahead at its next miss
	used   uint64
}

// readahead decides what else a miss fetches, on two grounds. What follows: a
// little after any miss, since a file that is opened is read on and a library's
// symbols come right after its header, and from then on twice as much with each
// miss that continues where the last fetch ended. And a region of
// which half was asked for already, as happens to the directories that a
// program loads its modules from, is fetched whole. What bounds both is waste:
// chunks fetched ahead count against the allowance until somebody asks for them.
// It is not safe for concurrent use.
type readahead struct {
	limit   int64
	waste   float64
	streams [streams]stream
	clock   uint64
	current *stream // of the last miss
	// pending are the chunks fetched ahead that nobody had asked for when last
	// looked at, and unused their image data in bytes.
	pending []int
	unused  int64
}

// A region is aligned to its length. It counts as dense from denseNum parts in
// denseDen on. Replayed over cold starts of Python, Go and Node images of 500 to
// 900 MB, with a few events left out at random, these and the constants above save
// the most round trips of all that keep what is resident well below twice what was
// asked for.
const (
	regionLen = 2 << 20
	denseNum  = 1
	denseDen  = 2
)

func newReadahead(limit int64, waste float64) *readahead {
	if limit == 0 {
		limit = DefaultMaxReadAhead
	}
	if waste == 0 {
		waste = DefaultReadAheadWaste
	}
	r := &readahead{limit: limit, waste: waste}
	for i := range r.streams {
		r.streams[i].next = -1
	}
	return r
}

// allowance returns how many bytes may be fetched ahead when asked distinct
// bytes were ever asked for. used says whether any byte of a chunk was.
func (r *readahead) allowance(m chunk.Map, asked int64, used func(int) bool) int64 {
	if r.limit < 0 {
		return 0
	}
	r.pending = slices.DeleteFunc(r.pending, func(i int) bool {
		if !used(i) {
			return false
		}
		r.unused -= m.At(i).Data.Len
		return true
	})
	return freeWaste + int64(r.waste*float64(asked)) - r.unused
}

// fetched notes that chunk i of n bytes is fetched ahead.
func (r *readahead) fetched(i int, n int64) {
	r.pending = append(r.pending, i)
	r.unused += n
}

// miss notes that chunks first to last are fetched because they were missed and
// returns the span that is worth having along with them, which includes them.
// used says whether any byte of a chunk was asked for.
func (r *readahead) miss(m chunk.Map, first, last int, used func(int) bool) span {
	r.clock++
	s := r.find(first)
	if s == nil {
		s = r.oldest()
		s.window = min(firstAhead, r.limit)
	} else {
		s.window = min(max(2*s.window, m.At(last).Data.Len), r.limit)
	}
	want := dense(m, first, last, used)
	end := last
	for left := s.window; end+1 < m.Len(); end++ {
		if left -= m.At(end + 1).Data.Len; left < 0 {
			break
		}
	}
	s.used, r.current = r.clock, s
	want.last = max(want.last, end)
	return want
}

// settle notes what came of the last miss, whose last chunk was last: the reader
// misses next at the first chunk after it that is neither resident nor on its
// way.
func (r *readahead) settle(m chunk.Map, last int, have func(int) bool) {
	next := last + 1
	for next < m.Len() && have(next) {
		next++
	}
	r.current.next = next
}

// dense returns the region around a miss when it is dense, else the miss itself.
func dense(m chunk.Map, first, last int, used func(int) bool) span {
	base := m.At(first).Data.Off / regionLen * regionLen
	in := span{m.Find(base), m.Find(min(base+regionLen, m.Size()) - 1)}
	var asked, all int64
	for i := in.first; i <= in.last; i++ {
		n := m.At(i).Data.Len
		all += n
		if used(i) || i >= first && i <= last {
			asked += n
		}
	}
	if asked*denseDen < all*denseNum {
		return span{first, last}
	}
	return span{min(in.first, first), max(in.last, last)}
}

// find returns the stream that chunk i continues: it is the next one or leaves
// out a few chunks.
func (r *readahead) find(i int) *stream {
	for k := range r.streams {
		s := &r.streams[k]
		if s.next >= 0 && i >= s.next && i <= s.next+skipped {
			return s
		}
	}
	return nil
}

func (r *readahead) oldest() *stream {
	o := &r.streams[0]
	for k := range r.streams {
		if r.streams[k].used < o.used {
			o = &r.streams[k]
		}
	}
	return o
}
