package layer

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// evenMap is a map of n chunks of 256 KiB.
type evenMap int

const evenChunk = 256 << 10

func (m evenMap) Size() int64 { return int64(m) * evenChunk }
func (m evenMap) Len() int    { return int(m) }
func (m evenMap) Find(off int64) int {
	if off < 0 || off >= m.Size() {
		return -1
	}
	return int(off / evenChunk)
}
func (m evenMap) At(i int) chunk.Chunk {
	return chunk.Chunk{Data: chunk.Extent{Off: int64(i) * evenChunk, Len: evenChunk}}
}

// model is what read-ahead sees of a layer, without one.
type model struct {
	evenMap
	r        *readahead
	resident []bool
	asked    askedMap
	fetched  int64
	misses   int
}

func newModel(n int, limit int64) *model {
	m := evenMap(n)
	return &model{evenMap: m, r: newReadahead(limit, 0), resident: make([]bool, n), asked: newAskedMap(m.Size())}
}

func (m *model) have(i int) bool { return m.resident[i] }
func (m *model) used(i int) bool { return m.asked.any(m.At(i).Data) }

// ask plays a read of one chunk or a part of it.
func (m *model) ask(off, n int64) {
	m.asked.mark(off, n)
	i := m.Find(off)
	if m.resident[i] {
		return
	}
	m.misses++
	m.get(i)
	left := m.r.allowance(m, m.asked.bytes(), m.used)
	want := m.r.miss(m, i, i, m.used)
	for k := want.first; k <= want.last; k++ {
		if !m.resident[k] && left >= evenChunk {
			left -= evenChunk
			m.r.fetched(k, evenChunk)
			m.get(k)
		}
	}
	m.r.settle(m, i, m.have)
}

func (m *model) get(i int) {
	m.resident[i] = true
	m.fetched += evenChunk
}

// earned is what asked bytes add to the allowance.
func earned(asked int64) int64 { return int64(DefaultReadAheadWaste * float64(asked)) }

func nothing(int) bool { return false }

// windows are the whole chunks that misses want ahead which continue each other:
// firstAhead and then twice as much each time, up to 4 MiB.
var windows = []int{1, 3, 6, 13, 16, 16, 16}

// TestSequentialWindowDoubles: misses that continue each other want more each time.
func TestSequentialWindowDoubles(t *testing.T) {
	r := newReadahead(0, 0)
	m := evenMap(1000)
	next, got := 100, []int{}
	for range 7 {
		want := r.miss(m, next, next, nothing)
		require.Equal(t, next, want.first)
		got = append(got, want.last-next)
		r.settle(m, want.last, nothing)
		next = want.last + 1
	}
	require.Equal(t, windows, got)
}

// TestRandomFetchesOneAhead: misses that have nothing to do with each other do
// not widen the window.
func TestRandomFetchesOneAhead(t *testing.T) {
	r := newReadahead(0, 0)
	m := evenMap(1000)
	for i := 0; i < 1000; i += 7 {
		require.Equal(t, span{i, min(i+1, 999)}, r.miss(m, i, i, nothing))
		r.settle(m, i, nothing)
	}
}

// TestStreamsAreToldApart: two interleaved sequential readers both get windows,
// and so does one that leaves out a few chunks.
func TestStreamsAreToldApart(t *testing.T) {
	r := newReadahead(0, 0)
	m := evenMap(1000)
	a, b := 0, 500
	for i := range 5 {
		endA := r.miss(m, a, a, nothing).last
		r.settle(m, endA, nothing)
		endB := r.miss(m, b, b, nothing).last
		r.settle(m, endB, nothing)
		require.Equal(t, windows[i], endA-a)
		require.Equal(t, windows[i], endB-b)
		a, b = endA+1, endB+1+skipped
	}
}

// TestDenseRegions: a region of eight chunks is wanted whole once four of them
// were asked for, the miss included.
func TestDenseRegions(t *testing.T) {
	for _, tc := range []struct {
		asked []int
		miss  int
		want  span
	}{
		{nil, 9, span{9, 10}},
		{[]int{10}, 9, span{9, 10}},
		{[]int{10, 15}, 9, span{9, 10}},
		{[]int{10, 13, 15}, 9, span{8, 15}},
		{[]int{6, 7, 16}, 9, span{9, 10}}, // in the neighbours
		{[]int{98, 100, 101}, 99, span{96, 103}},
		{[]int{392, 393}, 396, span{392, 396}}, // a shorter region, at the end of the map
	} {
		m := newModel(397, 0)
		for _, i := range tc.asked {
			m.asked.mark(int64(i)*evenChunk+evenChunk/2, 1)
		}
		require.Equal(t, tc.want, m.r.miss(m, tc.miss, tc.miss, m.used), "%+v", tc)
	}
}

// TestAllowance: what was fetched ahead counts until it is asked for.
func TestAllowance(t *testing.T) {
	m := newModel(100, 0)
	left := func() int64 { return m.r.allowance(m, m.asked.bytes(), m.used) }
	require.EqualValues(t, freeWaste, left())
	m.r.fetched(3, evenChunk)
	m.r.fetched(4, evenChunk)
	require.EqualValues(t, freeWaste-2*evenChunk, left())
	m.asked.mark(3*evenChunk, evenChunk)
	require.EqualValues(t, freeWaste-evenChunk+earned(evenChunk), left())
	m.asked.mark(4*evenChunk, 4096)
	require.EqualValues(t, freeWaste+earned(evenChunk+4096), left())
	m.r = newReadahead(0, 3)
	require.EqualValues(t, freeWaste+3*(evenChunk+4096), left())
	m.r = newReadahead(-1, 3)
	require.Zero(t, left())
}

func TestReadAheadOff(t *testing.T) {
	m := newModel(100, -1)
	for i := range int64(100) {
		m.ask(i*evenChunk, evenChunk)
		require.Equal(t, m.asked.bytes(), m.fetched)
	}
}

func TestReadAheadStopsAtTheEnd(t *testing.T) {
	r := newReadahead(0, 0)
	m := evenMap(6)
	for i := range 3 {
		r.miss(m, i, i, nothing)
		r.settle(m, i, nothing)
	}
	require.Equal(t, 5, r.miss(m, 3, 3, nothing).last)
}

// TestSequentialRatio: a reader of a whole 100 MiB image in steps of 128 KiB
// needs few misses and never wastes more than it may.
func TestSequentialRatio(t *testing.T) {
	m := newModel(400, 0)
	for off := int64(0); off < m.Size(); off += 128 << 10 {
		m.ask(off, 128<<10)
		require.LessOrEqual(t, m.fetched-m.asked.bytes(), freeWaste+earned(m.asked.bytes())+evenChunk)
	}
	require.Less(t, m.misses, 60)
}

// TestRandomRatio: small reads all over the image get their chunks and, in the
// end, little more than what is free.
func TestRandomRatio(t *testing.T) {
	m := newModel(400, 0)
	touched := map[int64]bool{}
	for i := range int64(120) {
		at := i * 157 % 400
		m.ask(at*evenChunk, 4096)
		touched[at] = true
		wasted := m.fetched - int64(len(touched))*evenChunk
		require.LessOrEqual(t, wasted, freeWaste+earned(m.asked.bytes()))
	}
}

func TestAskedMap(t *testing.T) {
	a := newAskedMap(1000*4096 + 10)
	for _, tc := range []struct{ off, n, want int64 }{
		{0, 1, 4096}, {4095, 1, 4096}, {4095, 2, 8192}, {-1, 5, 8192}, {5, 0, 8192}, {5, -5, 8192}, {1 << 40, 5, 8192},
		{60 * 4096, 70 * 4096, 72 * 4096}, {60 * 4096, 70 * 4096, 72 * 4096},
		{1000 * 4096, 1 << 40, 73 * 4096}, {0, 1 << 62, 1000*4096 + 10},
	} {
		a.mark(tc.off, tc.n)
		require.Equal(t, tc.want, a.bytes(), "after [%d, +%d)", tc.off, tc.n)
	}
}

// TestReadAheadIsFetchedInOneRequest: through the layer, and nobody waits for
// it to be right.
func TestReadAheadIsFetchedInOneRequest(t *testing.T) {
	r := newRig(t, 256*testChunk)
	r.conf.MaxReadAhead = 16 * testChunk
	l := r.open()
	before := r.blob.Requests()
	for i := range int64(256) {
		r.read(l, i*testChunk, testChunk)
	}
	require.Less(t, r.blob.Requests()-before, int64(40))
	s := l.Stats()
	require.EqualValues(t, 256*testChunk, s.AskedBytes)
	require.EqualValues(t, 256*testChunk, s.MissedBytes)
	require.Positive(t, s.ReadAheadBytes)
	require.Equal(t, 256, r.checkResident(l))
}

// TestTrace: an event per batch, with what it fetched.
func TestTrace(t *testing.T) {
	r := newRig(t, 16*testChunk)
	l := r.open()
	r.read(l, 3*testChunk, 2*testChunk)
	require.NoError(t, l.Warm(t.Context(), []chunk.Extent{{Off: 8 * testChunk, Len: 1}, {Off: 0, Len: 1}}))
	require.NoError(t, l.Fill(t.Context()))
	require.NoError(t, l.Close(t.Context())) // every batch has ended
	require.Len(t, r.events, 3)
	slices.SortFunc(r.events, func(a, b Event) int { return a.When.Compare(b.When) }) // told as they end
	for i, want := range []struct {
		kind     Kind
		off, len int64
		chunks   int
	}{
		{KindDemand, 3 * testChunk, 2 * testChunk, 2},
		{KindWarm, 0, 9 * testChunk, 2},
		{KindFill, 1 * testChunk, 15 * testChunk, 12},
	} {
		e := r.events[i]
		require.Equal(t, want.kind, e.Kind)
		require.Equal(t, want.off, e.Off)
		require.Equal(t, want.len, e.Len)
		require.Equal(t, want.chunks, e.Chunks)
		require.Positive(t, e.Bytes)
		require.NoError(t, e.Err)
		require.Equal(t, l.ID(), e.Layer)
		require.NotEqual(t, "unknown", e.Kind.String())
	}
}
