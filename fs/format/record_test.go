package format_test

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/format"
	"github.com/lazyerofs/lazyerofs/fs/format/formattest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRecordAndReplay(t *testing.T) {
	blob := formattest.NewBlob([]byte("0123456789"))
	rec := format.Record(blob)
	p := make([]byte, 4)
	for _, off := range []int64{6, 0} {
		_, err := rec.ReadAt(t.Context(), p, off)
		require.NoError(t, err)
	}
	_, err := rec.ReadAt(t.Context(), p, 8)
	require.Error(t, err, "a read that failed is not recorded")

	again, err := format.Replay(blob, rec.Bytes())
	require.NoError(t, err)
	before := blob.Requests()
	for off, want := range map[int64]string{0: "012", 1: "123", 7: "789"} {
		p := make([]byte, 3)
		n, err := again.ReadAt(t.Context(), p, off)
		require.NoError(t, err)
		require.Equal(t, want, string(p[:n]))
	}
	for _, off := range []int64{-1, 2, 4, 8, 100} {
		_, err := again.ReadAt(t.Context(), make([]byte, 3), off)
		require.ErrorIs(t, err, format.ErrNotRecorded, "offset %d", off)
	}
	require.Equal(t, before, blob.Requests())
	require.Equal(t, blob.Digest(), again.Digest())
	require.Equal(t, blob.Size(), again.Size())
}

// What a reader of extents accepted is replayed, what it refused is not.
func TestRecordedExtents(t *testing.T) {
	rec := format.Record(formattest.NewBlob([]byte("0123456789")))
	es := []chunk.Extent{{Off: 1, Len: 3}, {Off: 6, Len: 4}}
	read := func(r io.Reader) string {
		b, err := io.ReadAll(r)
		require.NoError(t, err)
		return string(b)
	}
	refused := errors.New("refused")
	require.ErrorIs(t, rec.ReadExtents(t.Context(), es[:1], func(_ int, r io.Reader) error {
		read(r)
		return refused
	}), refused)
	require.NoError(t, rec.ReadExtents(t.Context(), es[1:], func(_ int, r io.Reader) error {
		require.Equal(t, "6789", read(r))
		return nil
	}))

	again, err := format.Replay(nil, rec.Bytes())
	require.NoError(t, err)
	var got string
	keep := func(_ int, r io.Reader) error {
		got += read(r)
		return nil
	}
	require.ErrorIs(t, again.ReadExtents(t.Context(), es, keep), format.ErrNotRecorded)
	require.Empty(t, got)
	require.NoError(t, again.ReadExtents(t.Context(), []chunk.Extent{{Off: 6, Len: 1}, {Off: 8, Len: 2}}, keep))
	require.Equal(t, "689", got)
	require.ErrorIs(t, again.ReadExtents(t.Context(), es[1:], func(int, io.Reader) error { return refused }), refused)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, again.ReadExtents(ctx, es[1:], keep), context.Canceled)
}

func TestReplayRefuses(t *testing.T) {
	rec := format.Record(formattest.NewBlob([]byte("0123456789")))
	_, err := rec.ReadAt(context.Background(), make([]byte, 4), 6)
	require.NoError(t, err)
	good := rec.Bytes()
	for cut := range good {
		if cut == 8 {
			continue // a recording of nothing
		}
		_, err := format.Replay(nil, good[:cut])
		var ce *chunk.CorruptError
		require.ErrorAs(t, err, &ce, "cut at %d", cut)
		require.Equal(t, chunk.OriginDisk, ce.Origin)
	}
}

func FuzzReplay(f *testing.F) {
	rec := format.Record(formattest.NewBlob([]byte("0123456789")))
	_, err := rec.ReadAt(context.Background(), make([]byte, 4), 6)
	require.NoError(f, err)
	f.Add(rec.Bytes(), int64(6), uint8(4))
	f.Add([]byte("lazyrec1"), int64(0), uint8(0))
	f.Fuzz(func(t *testing.T, recording []byte, off int64, n uint8) {
		b, err := format.Replay(nil, recording)
		if err != nil {
			return
		}
		p := make([]byte, n)
		if got, err := b.ReadAt(t.Context(), p, off); err == nil && got != int(n) {
			t.Fatalf("short read of %d", got)
		}
	})
}
