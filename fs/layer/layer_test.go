package layer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"regexp"
	"sync"
	"testing"

	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/cache"
	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/format/formattest"
)

func TestReadsFetchOnlyWhatIsMissing(t *testing.T) {
	r := newRig(t, 64*testChunk+100)
	l := r.open()
	start := r.blob.Requests()
	r.read(l, 5*testChunk+7, 100)
	require.EqualValues(t, 1, r.blob.Requests()-start)
	r.read(l, 5*testChunk, testChunk)
	require.EqualValues(t, 1, r.blob.Requests()-start, "a hit asks nobody")
	r.read(l, 4*testChunk, 4*testChunk)
	require.EqualValues(t, 2, r.blob.Requests()-start, "one request for what is missing around")
	log := r.blob.Log()
	require.Equal(t, []chunk.Extent{r.plan.Data.At(4).Blob, r.plan.Data.At(6).Blob, r.plan.Data.At(7).Blob}, log[len(log)-1])
	r.read(l, 64*testChunk, 4096) // runs over the end
	require.Equal(t, 5, r.checkResident(l))
	s := l.Stats()
	require.EqualValues(t, 3, s.Batches)
	require.EqualValues(t, 4*testChunk+100, s.MissedBytes)
	require.Zero(t, s.ReadAheadBytes)
}

func TestEdges(t *testing.T) {
	r := newRig(t, 4*testChunk+100)
	l := r.open()
	ctx := t.Context()
	require.NoError(t, l.Ensure(ctx, 4*testChunk+100, 10), "after the end nothing is missing")
	require.NoError(t, l.Ensure(ctx, 0, 0))
	require.Error(t, l.Ensure(ctx, -1, 5))
	_, err := l.ReadAt(ctx, make([]byte, 5), -1)
	require.Error(t, err)
	n, err := l.ReadAt(ctx, make([]byte, 5), 4*testChunk+100)
	require.Zero(t, n)
	require.Equal(t, io.EOF, err)
	n, err = l.ReadAt(ctx, nil, 7)
	require.Zero(t, n)
	require.NoError(t, err)
	p := make([]byte, 200)
	n, err = l.ReadAt(ctx, p, 4*testChunk)
	require.Equal(t, 100, n)
	require.Equal(t, io.EOF, err)
	require.NoError(t, l.Ensure(ctx, 0, math.MaxInt64))
	require.Equal(t, 5, r.checkResident(l))
}

func TestID(t *testing.T) {
	allowed := regexp.MustCompile(`^[a-z0-9-]{1,100}$`)
	r := newRig(t, testChunk)
	require.Regexp(t, allowed, r.open().ID())
	require.Regexp(t, allowed, layerID(named{r.blob, digest.SHA512.FromString("x")}))
}

type named struct {
	*formattest.Blob
	id digest.Digest
}

func (n named) Digest() digest.Digest { return n.id }

// TestConcurrentReaders: many readers at random places against the truth.
func TestConcurrentReaders(t *testing.T) {
	r := newRig(t, 128*testChunk+777)
	r.conf.MaxReadAhead = 8 * testChunk
	l := r.open()
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), 1))
			for range 200 {
				off := rnd.Int64N(int64(len(r.image)))
				p := make([]byte, 1+rnd.IntN(3*testChunk))
				n, err := l.ReadAt(context.Background(), p, off)
				if err != nil && !errors.Is(err, io.EOF) {
					t.Errorf("reading at %d: %v", off, err)
				}
				if !bytes.Equal(p[:n], r.image[off:off+int64(n)]) {
					t.Errorf("[%d, +%d) is wrong", off, n)
				}
			}
		})
	}
	wg.Wait()
	require.NoError(t, l.Fill(t.Context()))
	require.Equal(t, 129, r.checkResident(l))
	<-l.Complete()
	fetched := map[int64]int{}
	for _, es := range r.blob.Log()[1:] { // the first is the index
		for _, e := range es {
			fetched[e.Off]++
		}
	}
	require.Len(t, fetched, 129)
	for off, n := range fetched {
		require.Equal(t, 1, n, "chunk at %d was fetched more than once", off)
	}
}

func TestResidentAndEnsureDoNotAllocate(t *testing.T) {
	r := newRig(t, 64*testChunk)
	l := r.open()
	r.read(l, 0, 10*testChunk)
	ctx := t.Context()
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if !l.Resident(testChunk+5, 3*testChunk) || l.Resident(20*testChunk, 1) {
			panic("wrong answer")
		}
		if err := l.Ensure(ctx, 2*testChunk, testChunk); err != nil {
			panic(err)
		}
	}))
}

// TestCorruptChunk: flipped bits give a typed error to those who need the
// chunk, and to nobody else; the next read tries again.
func TestCorruptChunk(t *testing.T) {
	r := newRig(t, 8*testChunk)
	var mu sync.Mutex
	bad := r.plan.Data.At(3).Blob
	flip := true
	r.blob.Mangle = func(e chunk.Extent, data []byte) []byte {
		mu.Lock()
		defer mu.Unlock()
		if flip && e == bad {
			data[len(data)/2] ^= 4
		}
		return data
	}
	l := r.open()
	err := l.Ensure(t.Context(), 0, 8*testChunk)
	var ce *chunk.CorruptError
	require.ErrorAs(t, err, &ce)
	require.Equal(t, chunk.OriginRegistry, ce.Origin)
	require.False(t, l.Resident(3*testChunk, 1))
	require.ErrorAs(t, l.Ensure(t.Context(), 3*testChunk, 1), &ce)
	require.EqualValues(t, 2, l.Stats().Corrupt)
	r.read(l, 4*testChunk, 4*testChunk)
	r.read(l, 0, 3*testChunk)
	mu.Lock()
	flip = false
	mu.Unlock()
	r.read(l, 3*testChunk, testChunk)
	require.Equal(t, 8, r.checkResident(l))
	<-l.Complete()
}

// oneByOne hands out extents in order and stops at the first error, as a single
// stream does.
type oneByOne struct{ *formattest.Blob }

func (o oneByOne) ReadExtents(ctx context.Context, es []chunk.Extent, fn func(int, io.Reader) error) error {
	for i := range es {
		err := o.Blob.ReadExtents(ctx, es[i:i+1], func(_ int, r io.Reader) error { return fn(i, r) })
		if err != nil {
			return err
		}
	}
	return nil
}

// TestCorruptChunkSparesItsNeighbours: also those that come after it in the same
// stream.
func TestCorruptChunkSparesItsNeighbours(t *testing.T) {
	r := newRig(t, 8*testChunk)
	r.conf.Blob = oneByOne{r.blob}
	r.blob.Mangle = func(e chunk.Extent, data []byte) []byte {
		if e == r.plan.Data.At(2).Blob || e == r.plan.Data.At(5).Blob {
			data[0] ^= 1
		}
		return data
	}
	l := r.open()
	var ce *chunk.CorruptError
	require.ErrorAs(t, l.Warm(t.Context(), []chunk.Extent{{Len: 8 * testChunk}}), &ce)
	r.read(l, 6*testChunk, 2*testChunk) // joins the batch where it still runs
	require.Equal(t, 6, r.checkResident(l))
	require.EqualValues(t, 2, l.Stats().Corrupt)
}

// secondTime asks for a corrupt extent once more, as remote.Retry does.
type secondTime struct{ *formattest.Blob }

func (s secondTime) ReadExtents(ctx context.Context, es []chunk.Extent, fn func(int, io.Reader) error) error {
	var ce *chunk.CorruptError
	err := oneByOne(s).ReadExtents(ctx, es, fn)
	if errors.As(err, &ce) {
		return oneByOne(s).ReadExtents(ctx, es, fn)
	}
	return err
}

// TestCorruptOnce: bytes that are right when asked for again fail nobody.
func TestCorruptOnce(t *testing.T) {
	r := newRig(t, 8*testChunk)
	r.conf.Blob = secondTime{r.blob}
	var once sync.Once
	r.blob.Mangle = func(e chunk.Extent, data []byte) []byte {
		if e == r.plan.Data.At(2).Blob {
			once.Do(func() { data[0] ^= 1 })
		}
		return data
	}
	l := r.open()
	r.read(l, 0, 4*testChunk)
	require.EqualValues(t, 1, l.Stats().Corrupt)
}

// TestShortBody: a registry client that delivers fewer bytes than it says.
func TestShortBody(t *testing.T) {
	r := newRig(t, 4*testChunk)
	r.blob.Mangle = func(_ chunk.Extent, data []byte) []byte { return data[:len(data)-1] }
	l := r.open()
	require.ErrorIs(t, l.Ensure(t.Context(), 0, 1), io.ErrUnexpectedEOF)
	require.Zero(t, r.checkResident(l))
}

// forgetful leaves out the last extent of every read.
type forgetful struct{ *formattest.Blob }

func (f forgetful) ReadExtents(ctx context.Context, es []chunk.Extent, fn func(int, io.Reader) error) error {
	return f.Blob.ReadExtents(ctx, es[:len(es)-1], fn)
}

// stutterer calls fn for everything twice, the first time with half the bytes.
type stutterer struct{ *formattest.Blob }

func (s stutterer) ReadExtents(ctx context.Context, es []chunk.Extent, fn func(int, io.Reader) error) error {
	return s.Blob.ReadExtents(ctx, es, func(i int, r io.Reader) error {
		data, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		if err := fn(i, bytes.NewReader(data[:len(data)/2])); err == nil {
			return errors.New("half a chunk was accepted")
		}
		return errors.Join(fn(i, bytes.NewReader(data)), fn(i, bytes.NewReader(data)))
	})
}

func TestOddClients(t *testing.T) {
	r := newRig(t, 4*testChunk)
	r.conf.Blob = forgetful{r.blob}
	l := r.open()
	require.ErrorContains(t, l.Ensure(t.Context(), 0, 2*testChunk), "left out")
	require.Equal(t, 1, r.checkResident(l))

	r = newRig(t, 4*testChunk)
	r.conf.Blob = stutterer{r.blob}
	l = r.open()
	r.read(l, 0, 4*testChunk)
	require.Equal(t, 4, r.checkResident(l))
}

// TestRegistryDown: an error reaches the reader; nothing is kept; the next read
// tries again.
func TestRegistryDown(t *testing.T) {
	r := newRig(t, 4*testChunk)
	down := errors.New("registry is down")
	var mu sync.Mutex
	cause := down
	r.blob.Gate = func(context.Context, []chunk.Extent) error {
		mu.Lock()
		defer mu.Unlock()
		return cause
	}
	l := r.open()
	require.ErrorIs(t, l.Ensure(t.Context(), 0, 1), down)
	require.ErrorIs(t, l.Fill(t.Context()), down)
	require.Zero(t, r.checkResident(l))
	r.settled(l)
	mu.Lock()
	cause = nil
	mu.Unlock()
	r.read(l, 0, 4*testChunk)
}

func TestWholeLayerIsChecked(t *testing.T) {
	r := newRig(t, 4*testChunk)
	outcome := make(chan error, 2)
	r.conf.Finished = func(err error) { outcome <- err }
	require.Equal(t, r.wholeDigest(), r.plan.Whole)
	l := r.open()
	require.NoError(t, l.Fill(t.Context()))
	require.NoError(t, <-outcome)
	<-l.Complete()

	r = newRig(t, 4*testChunk)
	r.conf.Finished = func(err error) { outcome <- err }
	r.plan.Whole = digest.FromString("what the image claims to be")
	l = r.open()
	require.NoError(t, l.Fill(t.Context()))
	var ce *chunk.CorruptError
	require.ErrorAs(t, <-outcome, &ce)
	select {
	case <-l.Complete():
		t.Fatal("complete in spite of the mismatch")
	default:
	}
	require.EqualValues(t, 1, l.Stats().Corrupt)
}

// TestCompleteLayerAsksNobody: a layer that was complete opens complete, without
// a request and without reading it all again.
func TestCompleteLayerAsksNobody(t *testing.T) {
	r := newRig(t, 4*testChunk)
	l := r.open()
	require.NoError(t, l.Fill(t.Context()))
	<-l.Complete()
	require.NoError(t, l.Close(t.Context()))
	before := r.blob.Requests()
	l = r.open()
	require.True(t, closed(l.Complete()), "a driver that adopts the mount asks at once")
	require.True(t, l.file.Verified())
	r.read(l, 0, 4*testChunk)
	require.NoError(t, l.Fill(t.Context()))
	require.Equal(t, before, r.blob.Requests())
}

func TestNewRefuses(t *testing.T) {
	r := newRig(t, 4*testChunk)
	f, err := cache.OpenFile(cache.Options{Dir: r.dir, ID: r.blob.Digest(), Map: r.plan.Data})
	require.NoError(t, err)
	defer f.Close(t.Context())
	local := *r.plan
	local.Meta = bytes.NewReader(nil)
	_, err = New(Config{Plan: &local, Blob: r.blob, File: f})
	require.ErrorContains(t, err, "disagree")
	other := newRig(t, 5*testChunk)
	_, err = New(Config{Plan: other.plan, Blob: r.blob, File: f})
	require.ErrorContains(t, err, "the plan has")
}

func BenchmarkResident(b *testing.B) {
	r := newRig(b, 1024*testChunk)
	l := r.open()
	require.NoError(b, l.Ensure(context.Background(), 0, 1023*testChunk))
	b.ReportAllocs()
	off := int64(0)
	for b.Loop() {
		off = (off + 997*4096) % (1000 * testChunk)
		if !l.Resident(off, 4096) {
			b.Fatal(off)
		}
	}
}

func BenchmarkEnsureResident(b *testing.B) {
	r := newRig(b, 1024*testChunk)
	l := r.open()
	ctx := context.Background()
	require.NoError(b, l.Ensure(ctx, 0, 1023*testChunk))
	b.ReportAllocs()
	off := int64(0)
	for b.Loop() {
		off = (off + 997*4096) % (1000 * testChunk)
		if err := l.Ensure(ctx, off, 32<<10); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFill(b *testing.B) {
	r := newRig(b, 1024*testChunk)
	b.SetBytes(int64(len(r.image)))
	for b.Loop() {
		b.StopTimer()
		r.dir = b.TempDir()
		l := r.open()
		b.StartTimer()
		if err := l.Fill(context.Background()); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		require.NoError(b, l.Close(context.Background()))
		b.StartTimer()
	}
}
