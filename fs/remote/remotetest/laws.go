package remotetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"

	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/remote"
)

// Laws checks that b keeps the contract of remote.Blob over the content want,
// which is at least 64 KiB.
func Laws(t *testing.T, b remote.Blob, want []byte) {
	t.Helper()
	ctx := t.Context()
	size := int64(len(want))
	require.GreaterOrEqual(t, size, int64(64<<10), "laws need some content")
	t.Run("identity", func(t *testing.T) {
		require.Equal(t, digest.FromBytes(want), b.Digest())
		require.Equal(t, size, b.Size())
	})
	t.Run("read at", func(t *testing.T) {
		for _, e := range []chunk.Extent{{Off: 0, Len: 1}, {Off: size - 1, Len: 1}, {Off: 0, Len: size}, {Off: 4095, Len: 4098}, {Off: size / 2, Len: 0}, {Off: size, Len: 0}} {
			p := make([]byte, e.Len)
			n, err := b.ReadAt(ctx, p, e.Off)
			require.NoError(t, err, "%+v", e)
			require.Equal(t, int(e.Len), n)
			require.True(t, bytes.Equal(want[e.Off:e.End()], p), "%+v", e)
		}
	})
	t.Run("outside is refused", func(t *testing.T) {
		for _, e := range []chunk.Extent{{Off: -1, Len: 1}, {Off: size, Len: 1}, {Off: size - 1, Len: 2}, {Off: size + 1, Len: 0}} {
			_, err := b.ReadAt(ctx, make([]byte, e.Len), e.Off)
			require.ErrorIs(t, err, remote.ErrRange, "%+v", e)
		}
		for _, es := range [][]chunk.Extent{{{Off: 0, Len: size + 1}}, {{Off: 10, Len: 10}, {Off: 15, Len: 10}}, {{Off: 10, Len: 1}, {Off: 0, Len: 1}}, {{Off: 0, Len: -1}}} {
			err := b.ReadExtents(ctx, es, func(int, io.Reader) error { return nil })
			require.ErrorIs(t, err, remote.ErrRange, "%+v", es)
		}
	})
	t.Run("extents", func(t *testing.T) { lawExtents(t, b, want) })
	t.Run("error of fn", func(t *testing.T) {
		mine := errors.New("mine")
		err := b.ReadExtents(ctx, []chunk.Extent{{Off: 0, Len: 10}, {Off: 20, Len: 10}}, func(i int, _ io.Reader) error {
			if i == 1 {
				return mine
			}
			return nil
		})
		require.Equal(t, mine, err)
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		_, err := b.ReadAt(ctx, make([]byte, 10), 0)
		require.ErrorIs(t, err, context.Canceled)
	})
	t.Run("concurrent", func(t *testing.T) { lawConcurrent(t, b, want) })
}

func lawExtents(t *testing.T, b remote.Blob, want []byte) {
	size := int64(len(want))
	for _, es := range [][]chunk.Extent{
		nil,
		{{Off: 0, Len: size}},
		{{Off: 0, Len: 100}, {Off: 100, Len: 100}, {Off: 201, Len: 99}},
		{{Off: 5, Len: 0}, {Off: 5, Len: 5}, {Off: 10, Len: 0}},
		{{Off: 1, Len: 1000}, {Off: size / 2, Len: 1000}, {Off: size - 7, Len: 7}},
	} {
		for _, part := range []bool{false, true} {
			var mu sync.Mutex
			got := map[int][]byte{}
			err := b.ReadExtents(t.Context(), es, func(i int, r io.Reader) error {
				if part { // a function that stops early must not disturb its neighbours
					r = io.LimitReader(r, 3)
				}
				p, err := io.ReadAll(r)
				mu.Lock()
				defer mu.Unlock()
				got[i] = p
				return err
			})
			require.NoError(t, err, "%+v", es)
			require.Len(t, got, len(es))
			for i, e := range es {
				exp := want[e.Off:e.End()]
				if part {
					exp = exp[:min(3, len(exp))]
				}
				require.True(t, bytes.Equal(exp, got[i]), "extent %d of %+v", i, es)
			}
		}
	}
}

func lawConcurrent(t *testing.T, b remote.Blob, want []byte) {
	var wg sync.WaitGroup
	errs := make([]error, 16)
	for i := range errs {
		wg.Go(func() {
			off := int64(i) * int64(len(want)) / int64(len(errs))
			p := make([]byte, 1000)
			if off+1000 > int64(len(want)) {
				off = int64(len(want)) - 1000
			}
			_, err := b.ReadAt(t.Context(), p, off)
			if err == nil && !bytes.Equal(p, want[off:off+1000]) {
				err = fmt.Errorf("wrong bytes at %d", off)
			}
			errs[i] = err
		})
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
}
