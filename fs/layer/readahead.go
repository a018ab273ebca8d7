package layer

import "github.com/lazyerofs/lazyerofs/fs/chunk"

// Defaults of read-ahead.
const (
	// DefaultMaxReadAhead is in bytes of image data.
	DefaultMaxReadAhead = 4 << 20
	// DefaultReadAheadRatio bounds image data made resident by misses over
	// distinct bytes asked for.
	DefaultReadAheadRatio = 1.9
)

// streams is how many sequential readers of one layer are told apart.
const streams = 8

// stream is a reader that was seen to go forward.
type stream struct {
	next   int   // the chunk that it misses next
	window int64 // bytes of image data to fetch ahead at its next miss
	used   uint64
}

// readahead decides what else a miss fetches, on two grounds. A miss that
// continues where the last fetch ended has a reader going forward: its window
// starts with one chunk and doubles with each further such miss. And a region of
// which a good part was fetched already, as happens to the directories that a
// program loads its modules from, is fetched whole. Both are bounded in all by
// how well earlier fetches were used. It is not safe for concurrent use.
type readahead struct {
	limit   int64
	ratio   float64
	streams [streams]stream
	clock   uint64
	current *stream // of the last miss
}

// A region is aligned to its length, which is minRegion times a power of two and
// at most the limit of read-ahead. It counts as dense from one part in
// denseParts on. For Python that starts from a tree of 700 MB, that saves one
// round trip in seven over windows alone; sparser regions save no more and spend
// the allowance.
const (
	minRegion  = 1 << 20
	denseParts = 2
)

func newReadahead(limit int64, ratio float64) *readahead {
	if limit == 0 {
		limit = DefaultMaxReadAhead
	}
	if ratio == 0 {
		ratio = DefaultReadAheadRatio
	}
	r := &readahead{limit: limit, ratio: ratio}
	for i := range r.streams {
		r.streams[i].next = -1
	}
	return r
}

// allowance returns how many bytes may be fetched ahead when asked distinct
// bytes were ever asked for and misses have fetched fetched of them.
func (r *readahead) allowance(asked, fetched int64) int64 {
	return int64(r.ratio*float64(asked)) - fetched
}

// miss notes that chunks first to last are fetched because they were missed and
// returns the span that is worth having along with them, which includes them.
// have says whether a chunk is resident or on its way.
func (r *readahead) miss(m chunk.Map, first, last int, have func(int) bool) span {
	r.clock++
	s := r.find(first)
	if s == nil {
		s = r.oldest()
		s.window = 0
	} else {
		s.window = min(max(2*s.window, m.At(last).Data.Len), r.limit)
	}
	want := r.dense(m, first, last, have)
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

// dense returns the largest dense region around a miss, or the miss itself.
func (r *readahead) dense(m chunk.Map, first, last int, have func(int) bool) span {
	want := span{first, last}
	off := m.At(first).Data.Off
	for size := int64(minRegion); size <= r.limit; size *= 2 {
		base := off / size * size
		in := span{m.Find(base), m.Find(min(base+size, m.Size()) - 1)}
		var had, all int64
		for i := in.first; i <= in.last; i++ {
			n := m.At(i).Data.Len
			all += n
			if have(i) || i >= first && i <= last {
				had += n
			}
		}
		if had*denseParts >= all {
			want = span{min(in.first, first), max(in.last, last)}
		}
	}
	return want
}

// find returns the stream that chunk i continues: it is the next one or leaves
// out a single chunk, as a file that was not read does.
func (r *readahead) find(i int) *stream {
	for k := range r.streams {
		s := &r.streams[k]
		if s.next >= 0 && (i == s.next || i == s.next+1) {
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
