package differ

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

// fickle gives the bytes of a tar, but another one at an address after so many reads
// of it. It calls read before each.
type fickle struct {
	src   []byte
	off   int64
	after int
	read  func() error

	mu   sync.Mutex
	seen int
}

func (f *fickle) ReadAt(p []byte, off int64) (int, error) {
	if f.read != nil {
		if err := f.read(); err != nil {
			return 0, err
		}
	}
	n, err := bytes.NewReader(f.src).ReadAt(p, off)
	if f.off >= off && f.off < off+int64(n) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.seen >= f.after {
			p[f.off-off] ^= 1
		}
		f.seen++
	}
	return n, err
}

// TestChanged: a layer is that of the tar that has the digest, wherever the tar
// changes between the reads of it.
func TestChanged(t *testing.T) {
	hole := string(make([]byte, 1<<20))
	src := mkTar(t, dir("d"), file("d/small", text(1, 5000)), file("d/big", text(2, 3*DefaultChunkSize)), file("d/holes", hole+"x"+hole),
		file("end", text(3, 10)))
	src = append(src, make([]byte, 5000)...) // as tar does
	at := func(s string) int64 { return int64(bytes.Index(src, []byte(s))) }
	for name, tc := range map[string]struct {
		off    int64
		unread bool
	}{
		"a name":         {off: at("d/small")},
		"a small file":   {off: at(text(1, 5000)) + 4000},
		"a chunk":        {off: at(text(2, 600)) + DefaultChunkSize + 5},
		"a hole":         {off: at("d/holes") + 512 + 70000},
		"the last file":  {off: at(text(3, 10))},
		"the end marker": {off: at(text(3, 10)) + 600},
		"padding":        {off: at(text(1, 5000)) + 5001, unread: true},
		"behind the end": {off: int64(len(src)) - 1, unread: true},
	} {
		t.Run(name, func(t *testing.T) {
			changed := 0
			for after := range 4 {
				var out bytes.Buffer
				f := &fickle{src: src, off: tc.off, after: after}
				res, err := ConvertAt(t.Context(), f, int64(len(src)), &out, Config{SpoolDir: t.TempDir()})
				if errors.Is(err, ErrChanged) {
					changed++
					continue
				}
				if errors.Is(err, tar.ErrHeader) {
					continue // the scan has seen it, or all have
				}
				require.NoError(t, err)
				is := bytes.Clone(src)
				if res.TarDiffID != digest.FromBytes(is) {
					is[tc.off] ^= 1
				}
				require.Equal(t, digest.FromBytes(is), res.TarDiffID)
				_, blob := convertBytes(t, is, Config{})
				require.Equal(t, blob, out.Bytes())
			}
			require.Equal(t, tc.unread, changed == 0)
		})
	}
}

// TestConvertAtFallsBack: data that is not in one piece, or that nobody wants, and
// what is compressed.
func TestConvertAtFallsBack(t *testing.T) {
	for name, src := range map[string][]byte{
		"old sparse": sparseTar(t, "gnu", 600<<10, 0, 400<<10), "sparse": sparseTar(t, "pax", 600<<10, 0, 400<<10),
		"dropped data": mkTar(t, file("a", "1"), file(".wh..wh.plnk/1.2", text(1, 3000)), file("b", "2")),
		"gzip":         gzipped(t, mkTar(t, file("a", text(1, 400000)))),
	} {
		t.Run(name, func(t *testing.T) {
			res, err := ConvertAt(t.Context(), bytes.NewReader(src), int64(len(src)), io.Discard, Config{SpoolDir: t.TempDir()})
			require.NoError(t, err)
			require.Positive(t, res.SpoolSize)
		})
	}
	res, err := ConvertAt(t.Context(), bytes.NewReader(layerTar(t)), int64(len(layerTar(t))), io.Discard, Config{SpoolDir: "/nowhere"})
	require.NoError(t, err, "nothing waits on disk")
	require.Zero(t, res.SpoolSize)
}

func TestConvertAtEnds(t *testing.T) {
	src := layerTar(t)
	size := int64(len(src))
	broken := errors.New("broken")
	for _, after := range []int{0, 3, 50, 250} {
		var mu sync.Mutex
		reads := 0
		count := func(then func() error) func() error {
			reads = 0
			return func() error {
				mu.Lock()
				defer mu.Unlock()
				if reads++; reads > after {
					return then()
				}
				return nil
			}
		}
		_, err := ConvertAt(t.Context(), &fickle{src: src, off: -1, read: count(func() error { return broken })}, size, io.Discard, Config{})
		require.ErrorIs(t, err, broken)
		ctx, cancel := context.WithCancel(t.Context())
		_, err = ConvertAt(ctx, &fickle{src: src, off: -1, read: count(func() error { cancel(); return nil })}, size, io.Discard, Config{})
		require.ErrorIs(t, err, context.Canceled)
		_, err = ConvertAt(t.Context(), bytes.NewReader(src), size, &failAfter{n: after << 10, err: broken}, Config{})
		require.ErrorIs(t, err, broken)
	}
	_, err := ConvertAt(t.Context(), bytes.NewReader(src), size+1, io.Discard, Config{})
	require.ErrorIs(t, err, ErrTruncated, "shorter than was said")
	_, err = ConvertAt(t.Context(), bytes.NewReader(src[:len(src)/2]), size/2, io.Discard, Config{})
	require.ErrorIs(t, err, ErrTruncated)
}

// TestConvertAtCancelled: headers alone may be many.
func TestConvertAtCancelled(t *testing.T) {
	var ents []ent
	for i := range 20000 {
		ents = append(ents, file(strconv.Itoa(i), ""))
	}
	src := mkTar(t, ents...)
	ctx, cancel := context.WithCancel(t.Context())
	var reads atomic.Int64
	_, err := ConvertAt(ctx, &fickle{src: src, off: -1, read: func() error {
		if reads.Add(1) == 5 {
			cancel()
		}
		return nil
	}}, int64(len(src)), io.Discard, Config{})
	require.ErrorIs(t, err, context.Canceled)
	require.Less(t, reads.Load(), int64(20))
}

// TestConvertAtProgress: it grows to the length of the tar.
func TestConvertAtProgress(t *testing.T) {
	for name, src := range map[string][]byte{"files": layerTar(t), "no data": mkTar(t, dir("a"))} {
		t.Run(name, func(t *testing.T) {
			var last int64
			_, err := ConvertAt(t.Context(), bytes.NewReader(src), int64(len(src)), io.Discard, Config{Progress: func(n int64) {
				require.GreaterOrEqual(t, n, last)
				last = n
			}})
			require.NoError(t, err)
			require.EqualValues(t, len(src), last)
		})
	}
}
