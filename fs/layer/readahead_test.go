package layer

import (
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

// TestSequentialWindowDoubles: misses that continue each other fetch 0, 1, 2, 4,
// 8, 16, 16 chunks ahead; the limit is 4 MiB.
func TestSequentialWindowDoubles(t *testing.T) {
	r := newReadahead(0, 0)
	m := evenMap(1000)
	next, got := 100, []int{}
	for range 7 {
		end := r.miss(m, next, next, 1<<40, 0)
		got = append(got, end-next)
		next = end + 1
	}
	require.Equal(t, []int{0, 1, 2, 4, 8, 16, 16}, got)
}

func TestRandomFetchesNothingAhead(t *testing.T) {
	r := newReadahead(0, 0)
	m := evenMap(1000)
	for i := 0; i < 1000; i += 7 {
		require.Equal(t, i, r.miss(m, i, i, 1<<40, 0))
	}
}

// TestStreamsAreToldApart: two interleaved sequential readers both get windows,
// and so does one that leaves out a chunk.
func TestStreamsAreToldApart(t *testing.T) {
	r := newReadahead(0, 0)
	m := evenMap(1000)
	a, b := 0, 500
	for i := range 5 {
		endA, endB := r.miss(m, a, a, 1<<40, 0), r.miss(m, b, b, 1<<40, 0)
		require.Equal(t, i > 0, endA > a)
		require.Equal(t, endA-a, endB-b)
		a, b = endA+1, endB+2
	}
}

// TestBudget: nothing is fetched ahead beyond the ratio of what was asked for.
func TestBudget(t *testing.T) {
	m := evenMap(1000)
	for _, tc := range []struct {
		asked, fetched int64
		want           int
	}{
		{evenChunk, 2 * evenChunk, 0},
		{evenChunk, 2*evenChunk - 1, 0},
		{evenChunk, evenChunk, 1},
		{4096, evenChunk, 0},
		{100 * evenChunk, 197 * evenChunk, 3},
		{100 * evenChunk, 0, 4},
	} {
		r := newReadahead(0, 0)
		for i := range 3 { // the window grows to two chunks, then four
			r.miss(m, i, i, 0, 0)
		}
		require.Equal(t, tc.want, r.miss(m, 3, 3, tc.asked, tc.fetched)-3, "%+v", tc)
	}
}

func TestReadAheadOff(t *testing.T) {
	r := newReadahead(-1, 0)
	m := evenMap(1000)
	for i := range 20 {
		require.Equal(t, i, r.miss(m, i, i, 1<<40, 0))
	}
}

func TestReadAheadStopsAtTheEnd(t *testing.T) {
	r := newReadahead(0, 0)
	m := evenMap(6)
	for i := range 3 {
		r.miss(m, i, i, 0, 0)
	}
	require.Equal(t, 5, r.miss(m, 3, 3, 1<<40, 0))
}

// TestSequentialRatio: a reader of a whole 100 MiB image in steps of 128 KiB
// needs few misses and never exceeds the ratio.
func TestSequentialRatio(t *testing.T) {
	m := evenMap(400)
	r := newReadahead(0, 0)
	asked := newAskedMap(m.Size())
	resident := make([]bool, m)
	var fetched int64
	misses := 0
	for off := int64(0); off < m.Size(); off += 128 << 10 {
		asked.mark(off, 128<<10)
		i := m.Find(off)
		if resident[i] {
			continue
		}
		misses++
		fetched += evenChunk
		end := r.miss(m, i, i, asked.bytes(), fetched)
		fetched += int64(end-i) * evenChunk
		for k := i; k <= end; k++ {
			resident[k] = true
		}
		require.LessOrEqual(t, fetched, max(2*asked.bytes(), evenChunk))
	}
	require.Less(t, misses, 40)
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
