package layer

import "github.com/lazyerofs/lazyerofs/fs/chunk"

// Defaults of read-ahead.
const (
	// DefaultMaxReadAhead is in bytes of image data.
	DefaultMaxReadAhead = 4 << 20
	// DefaultReadAheadRatio bounds image data made resident by misses over
	// distinct bytes asked for.
	DefaultReadAheadRatio = 2.0
)

// streams is how many sequential readers of one layer are told apart.
const streams = 8

// stream is a reader that was seen to go forward.
type stream struct {
	next   int   // the chunk after the last one fetched for it
	window int64 // bytes of image data to fetch ahead at its next miss
	used   uint64
}

// readahead decides how much more than the missing chunks a miss fetches. A
// window starts empty, becomes one chunk when a miss continues where the last
// fetch ended, and doubles with each further such miss; it is bounded in all by
// how well earlier fetches were used. It is not safe for concurrent use.
type readahead struct {
	limit   int64
	ratio   float64
	streams [streams]stream
	clock   uint64
}

func newReadahead(limit int64, ratio float64) readahead {
	if limit == 0 {
		limit = DefaultMaxReadAhead
	}
	if ratio == 0 {
		ratio = DefaultReadAheadRatio
	}
	r := readahead{limit: limit, ratio: ratio}
	for i := range r.streams {
		r.streams[i].next = -1
	}
	return r
}

// miss notes that chunks first to last are fetched because they were missed and
// returns the last chunk that should be fetched along with them. asked is how
// many distinct bytes were ever asked for, fetched how many misses have fetched,
// these chunks included.
func (r *readahead) miss(m chunk.Map, first, last int, asked, fetched int64) int {
	r.clock++
	s := r.find(first)
	if s == nil {
		s = r.oldest()
		s.window = 0
	} else {
		s.window = min(max(2*s.window, m.At(last).Data.Len), r.limit)
	}
	left := min(s.window, int64(r.ratio*float64(asked))-fetched)
	end := last
	for end+1 < m.Len() {
		if left -= m.At(end + 1).Data.Len; left < 0 {
			break
		}
		end++
	}
	s.next, s.used = end+1, r.clock
	return end
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
