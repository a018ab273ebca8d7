package erofs

import (
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"
)

// Metadata is read and accounted for in segments.
const (
	segmentBits = 18
	segmentSize = 1 << segmentBits
	// 64 MiB are kept, in sets of segments that replace each other.
	cacheSets = 64
	cacheWays = 4
	// granule is the unit of claims: inodes begin at its multiples, and what
	// follows them belongs to them up to the next.
	granule      = 1 << nidShift
	claimWords   = segmentSize / granule / 64
	noSegment    = -1
	prefixMapMax = 4096
)

// metaReader reads metadata through a set-associative cache of segments and
// keeps account of which structure is where.
type metaReader struct {
	r        io.ReaderAt
	size     int64                         // of the image
	hint     int64                         // where metadata is said to end
	budget   int64                         // bytes that may still be read
	sets     [cacheSets][cacheWays]segment // each from the last used on
	scratch  []byte
	claims   map[int64]*claims // by segment number
	lastNo   int64
	last     *claims
	maxPages int64
	maxRuns  int
}

type segment struct {
	no  int64
	buf []byte
}

// claims has one bit per granule of a segment. What is owned belongs to one
// structure; what is shared, to shared xattrs.
type claims struct {
	owned, shared [claimWords]uint64
}

func newMetaReader(r io.ReaderAt, p Policy) *metaReader {
	m := &metaReader{r: r, size: p.ImageSize, hint: p.MetaHint, budget: p.MaxRead, claims: map[int64]*claims{}, lastNo: noSegment}
	for k := range m.sets {
		for w := range m.sets[k] {
			m.sets[k][w].no = noSegment
		}
	}
	m.maxPages, m.maxRuns = p.MaxMeta, p.MaxMetaExtents
	return m
}

// view returns the bytes [off, off+n) of the image. They hold until the next
// call.
func (m *metaReader) view(off, n int64) ([]byte, error) {
	if off < 0 || n < 0 || off > m.size || n > m.size-off {
		return nil, refuse(RuleBounds, off, "%d bytes of metadata there, the image ends at byte %d", n, m.size)
	}
	no := off >> segmentBits
	in := off & (segmentSize - 1)
	if in+n <= segmentSize {
		b, err := m.segment(no, in+n)
		if err != nil {
			return nil, err
		}
		return b[in : in+n], nil
	}
	m.scratch = m.scratch[:0]
	for n > 0 {
		take := min(n, segmentSize-in)
		b, err := m.segment(no, in+take)
		if err != nil {
			return nil, err
		}
		m.scratch = append(m.scratch, b[in:in+take]...)
		n, no, in = n-take, no+1, 0
	}
	return m.scratch, nil
}

// segment returns segment no, which holds at least need bytes.
func (m *metaReader) segment(no, need int64) ([]byte, error) {
	set := &m.sets[no%cacheSets]
	if set[0].no == no && int64(len(set[0].buf)) >= need {
		return set[0].buf, nil
	}
	way := 0
	for way < cacheWays-1 && set[way].no != no {
		way++
	}
	found := set[way]
	copy(set[1:way+1], set[:way])
	set[0] = found
	s := &set[0]
	if s.no == no && int64(len(s.buf)) >= need {
		return s.buf, nil
	}
	start := no << segmentBits
	end := min(start+segmentSize, m.size)
	if m.hint > start && m.hint < end && m.hint-start >= need {
		end = m.hint
	}
	n := end - start
	if m.budget -= n; m.budget < 0 {
		return nil, refuse(RuleLimit, start, "metadata so large or so scattered that it takes too much reading")
	}
	if int64(cap(s.buf)) < n {
		s.buf = make([]byte, n)
	}
	s.no, s.buf = noSegment, s.buf[:n]
	if got, err := m.r.ReadAt(s.buf, start); int64(got) < n {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("reading metadata at [%d, +%d): %w", start, n, err)
	}
	s.no = no
	return s.buf, nil
}

// claim enters a structure at [off, off+n), which was read before. Nothing else
// may be in the granules it touches, other shared xattrs beside a shared one
// excepted.
func (m *metaReader) claim(off, n int64, shared bool) error {
	for g, end := off/granule, (off+n-1)/granule; g <= end; {
		no := g * granule >> segmentBits
		c, err := m.page(no)
		if err != nil {
			return err
		}
		word, bit := int(g/64)%claimWords, uint(g%64)
		take := min(int64(64-bit), end-g+1)
		mask := (^uint64(0) >> (64 - take)) << bit
		if c.owned[word]&mask != 0 || !shared && c.shared[word]&mask != 0 {
			at := (g&^63 + int64(bits.TrailingZeros64((c.owned[word]|c.shared[word])&mask))) * granule
			return refuse(RuleOverlap, off, "a structure of %d bytes runs into another one at byte %d", n, at)
		}
		if shared {
			c.shared[word] |= mask
		} else {
			c.owned[word] |= mask
		}
		g += take
	}
	return nil
}

// isOwned says whether an earlier structure has the granule at off.
func (m *metaReader) isOwned(off int64) bool {
	c, ok := m.claims[off>>segmentBits]
	g := off / granule
	return ok && c.owned[int(g/64)%claimWords]&(1<<uint(g%64)) != 0
}

func (m *metaReader) page(no int64) (*claims, error) {
	if no == m.lastNo {
		return m.last, nil
	}
	c, ok := m.claims[no]
	if !ok {
		c = &claims{}
		m.claims[no] = c
	}
	m.lastNo, m.last = no, c
	return c, nil
}

// ranges returns the claimed blocks, joined.
func (m *metaReader) ranges(block int64) ([]Range, error) {
	nos := make([]int64, 0, len(m.claims))
	for no := range m.claims {
		nos = append(nos, no)
	}
	slices.Sort(nos)
	var out []Range
	var total int64
	per := int(block / granule) // granules in a block: 16 to 128
	for _, no := range nos {
		c := m.claims[no]
		for g := 0; g < claimWords*64; g += per {
			if !c.any(g, per) {
				continue
			}
			off := no<<segmentBits + int64(g)*granule
			total += block
			if k := len(out) - 1; k >= 0 && out[k].Off+out[k].Len == off {
				out[k].Len += block
				continue
			}
			if len(out) >= m.maxRuns {
				return nil, refuse(RuleLimit, off, "metadata in more than %d places", m.maxRuns)
			}
			out = append(out, Range{Off: off, Len: block})
		}
	}
	if total > m.maxPages {
		return nil, refuse(RuleLimit, 0, "%d bytes of metadata, %d are allowed", total, m.maxPages)
	}
	return out, nil
}

// any says whether a granule of [g, g+n) is claimed. n divides 64 or is a
// multiple of it.
func (c *claims) any(g, n int) bool {
	if n < 64 {
		mask := (uint64(1)<<n - 1) << (g % 64)
		return (c.owned[g/64]|c.shared[g/64])&mask != 0
	}
	for w := g / 64; w < (g+n)/64; w++ {
		if c.owned[w]|c.shared[w] != 0 {
			return true
		}
	}
	return false
}

// overlapping finds a range, of ascending ones, that shares a byte with
// [off, off+n).
func overlapping(ranges []Range, off, n int64) (Range, bool) {
	k, _ := slices.BinarySearchFunc(ranges, off, func(r Range, off int64) int {
		if r.Off+r.Len <= off {
			return -1
		}
		return 1
	})
	if k < len(ranges) && ranges[k].Off < off+n {
		return ranges[k], true
	}
	return Range{}, false
}
