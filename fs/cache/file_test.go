package cache

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

func TestFileFillsAndSurvives(t *testing.T) {
	before := openDescriptors(t)
	l := newLayer(t, t.TempDir(), 20*testChunk+100)
	f := l.open(t)
	require.Zero(t, l.check(t, f))
	l.write(t, f, 3, 0, 20)
	require.Equal(t, 3, l.check(t, f))
	resident, total := f.Progress()
	require.EqualValues(t, 2*testChunk+100, resident)
	require.EqualValues(t, 20*testChunk+100, total)
	require.NoError(t, f.Close(t.Context()))
	require.NoError(t, f.Close(t.Context()), "closing twice")

	f = l.open(t)
	require.Equal(t, 3, l.check(t, f))
	resident, _ = f.Progress()
	require.EqualValues(t, 2*testChunk+100, resident)
	st, err := f.Data().Stat()
	require.NoError(t, err)
	require.EqualValues(t, 20*testChunk+4096, st.Size(), "the data file is as long as its blocks")
	require.NoError(t, f.Close(t.Context()))
	require.Equal(t, before, openDescriptors(t))
}

func TestResident(t *testing.T) {
	l := newLayer(t, t.TempDir(), 200*testChunk+100)
	f := l.open(t)
	l.write(t, f, 1, 2, 63, 64, 65, 200)
	for _, tc := range []struct {
		off, n int64
		want   bool
	}{
		{testChunk, 1, true}, {testChunk, testChunk, true}, {testChunk, 2 * testChunk, true},
		{testChunk - 1, 1, false}, {testChunk - 1, 2, false}, {testChunk, 2*testChunk + 1, false},
		{63 * testChunk, 3 * testChunk, true}, {62 * testChunk, 4 * testChunk, false}, {63 * testChunk, 4 * testChunk, false},
		{200 * testChunk, 100, true}, {200 * testChunk, math.MaxInt64, true}, {200*testChunk + 100, 4096, true},
		{199 * testChunk, math.MaxInt64, false}, {math.MaxInt64, math.MaxInt64, true},
		{0, 0, true}, {0, -1, true}, {-1, 1, false}, {math.MinInt64, math.MaxInt64, false},
		{0, math.MaxInt64, false},
	} {
		require.Equal(t, tc.want, f.Resident(tc.off, tc.n), "[%d, +%d)", tc.off, tc.n)
	}
}

// TestResidentMatchesNaive compares with a walk over all chunks.
func TestResidentMatchesNaive(t *testing.T) {
	l := newLayer(t, t.TempDir(), 300*testChunk)
	f := l.open(t)
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 290 {
		l.write(t, f, rnd.IntN(300))
		for range 20 {
			off := rnd.Int64N(300 * testChunk)
			n := 1 + rnd.Int64N(testChunk*8)
			want := true
			for i := range 300 {
				d := l.m.At(i).Data
				if d.Off < off+n && off < d.End() && !f.ResidentChunk(i) {
					want = false
				}
			}
			require.Equal(t, want, f.Resident(off, n))
		}
	}
}

func TestResidentDoesNotAllocate(t *testing.T) {
	l := newLayer(t, t.TempDir(), 300*testChunk)
	f := l.open(t)
	l.write(t, f, 1, 2, 3, 63, 64)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if !f.Resident(testChunk+7, 2*testChunk) || f.Resident(4*testChunk, 1) || !f.ResidentChunk(64) {
			panic("wrong answer")
		}
	}))
}

func TestComplete(t *testing.T) {
	l := newLayer(t, t.TempDir(), 10*testChunk)
	f := l.open(t)
	for i := range 10 {
		select {
		case <-f.Complete():
			t.Fatal("complete too early")
		default:
		}
		l.write(t, f, i)
	}
	<-f.Complete() // the flusher does it without being asked
	require.True(t, f.Resident(0, math.MaxInt64))
	require.Equal(t, 10, l.check(t, f))
	require.NoError(t, f.Close(t.Context()))

	f = l.open(t)
	<-f.Complete()
	require.Equal(t, 10, l.check(t, f))
}

func TestEmptyLayerIsComplete(t *testing.T) {
	l := newLayer(t, t.TempDir(), 0)
	f := l.open(t)
	<-f.Complete()
	require.True(t, f.Resident(0, 4096))
}

func TestWriteChunkRefuses(t *testing.T) {
	l := newLayer(t, t.TempDir(), 3*testChunk)
	f := l.open(t)
	require.Error(t, f.WriteChunk(-1, l.chunk(0)))
	require.Error(t, f.WriteChunk(3, l.chunk(0)))
	require.Error(t, f.WriteChunk(0, l.chunk(0)[1:]))
	require.Zero(t, l.check(t, f))
	l.write(t, f, 0)
	require.NoError(t, f.WriteChunk(0, make([]byte, testChunk)), "a resident chunk is left alone")
	require.Equal(t, 1, l.check(t, f))
}

func TestWriterIsInherited(t *testing.T) {
	l := newLayer(t, t.TempDir(), 4*testChunk)
	f := l.open(t)
	l.write(t, f, 1)
	require.NoError(t, f.Close(t.Context()))

	w, err := os.OpenFile(filepath.Join(l.opts.Dir, dataName), os.O_RDWR, 0)
	require.NoError(t, err)
	l.opts.Writer = w
	f = l.open(t)
	require.Same(t, w, f.Data())
	require.Equal(t, 1, l.check(t, f))
	require.NoError(t, f.Close(t.Context()))
	require.ErrorIs(t, w.Close(), os.ErrClosed, "the File owned it")
}

func TestForeignWriterIsRefused(t *testing.T) {
	l := newLayer(t, t.TempDir(), 4*testChunk)
	f := l.open(t)
	require.NoError(t, f.Close(t.Context()))
	w, err := os.CreateTemp(t.TempDir(), "")
	require.NoError(t, err)
	l.opts.Writer = w
	_, err = OpenFile(l.opts)
	require.ErrorContains(t, err, "another file")
	require.NoError(t, w.Close(), "the caller still owns it")
}

func TestInUse(t *testing.T) {
	l := newLayer(t, t.TempDir(), 4*testChunk)
	f := l.open(t)
	_, err := OpenFile(l.opts)
	require.ErrorIs(t, err, ErrInUse)
	require.NoError(t, f.Close(t.Context()))
	l.open(t)
}

// TestConcurrentWriters: many goroutines write, read and flush at once; what is
// resident is always right.
func TestConcurrentWriters(t *testing.T) {
	l := newLayer(t, t.TempDir(), 64*testChunk)
	f := l.open(t)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), 9))
			for _, i := range rnd.Perm(64) {
				if err := f.WriteChunk(i, l.chunk(i)); err != nil {
					t.Error(err)
				}
				buf := make([]byte, testChunk)
				j := rnd.IntN(64)
				_, err := f.ReadAt(buf, int64(j)*testChunk)
				if err == nil && !bytes.Equal(buf, l.chunk(j)) {
					t.Errorf("chunk %d is wrong", j)
				}
				if i%16 == 0 {
					if err := f.Flush(t.Context()); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	<-f.Complete()
	require.Equal(t, 64, l.check(t, f))
}

func TestVerify(t *testing.T) {
	l := newLayer(t, t.TempDir(), 5*testChunk+100)
	f := l.open(t)
	want := digest.FromBytes(l.image)
	require.ErrorIs(t, f.Verify(t.Context(), want, nil), ErrNotResident)
	l.write(t, f, 0, 1, 2, 3, 4, 5)
	require.False(t, f.Verified())
	var ce *chunk.CorruptError
	require.ErrorAs(t, f.Verify(t.Context(), want, []byte("tail")), &ce)
	require.Equal(t, chunk.OriginDisk, ce.Origin)
	require.Error(t, f.Verify(t.Context(), "nonsense", nil))
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, f.Verify(cancelled, want, nil), context.Canceled)
	require.False(t, f.Verified())
	require.NoError(t, f.Verify(t.Context(), want, nil))
	require.True(t, f.Verified())
	require.NoError(t, f.Verify(t.Context(), digest.FromBytes(append(bytes.Clone(l.image), "tail"...)), []byte("tail")))
	require.NoError(t, f.Close(t.Context()))
	require.True(t, l.open(t).Verified(), "success is remembered")
}

// TestVerifySeesRot: a byte that changed under a resident bit.
func TestVerifySeesRot(t *testing.T) {
	l := newLayer(t, t.TempDir(), 3*testChunk)
	f := l.open(t)
	l.write(t, f, 0, 1, 2)
	_, err := f.Data().WriteAt([]byte{^l.image[9999]}, 9999)
	require.NoError(t, err)
	var ce *chunk.CorruptError
	require.ErrorAs(t, f.Verify(t.Context(), digest.FromBytes(l.image), nil), &ce)
}

func TestReadAtEnd(t *testing.T) {
	l := newLayer(t, t.TempDir(), testChunk+100)
	f := l.open(t)
	l.write(t, f, 0, 1)
	p := make([]byte, 8192)
	n, err := f.ReadAt(p, testChunk)
	require.True(t, err == nil || errors.Is(err, io.EOF))
	require.GreaterOrEqual(t, n, 100)
	require.Equal(t, l.image[testChunk:], p[:100])
}

func BenchmarkResident(b *testing.B) {
	l := newLayer(b, b.TempDir(), 4096*testChunk)
	f := l.open(b)
	for i := range 4095 {
		l.write(b, f, i)
	}
	b.ReportAllocs()
	off := int64(0)
	for b.Loop() {
		off = (off + 997*4096) % (4000 * testChunk)
		if !f.Resident(off, 4096) {
			b.Fatal(off)
		}
	}
}
