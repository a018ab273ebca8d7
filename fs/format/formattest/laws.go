package formattest

import (
	"bytes"
	"context"
	"io"
	"testing"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/format"
)

// Layer is one layer that a format must be able to read.
type Layer struct {
	Format format.Format
	Blob   []byte
	Desc   ocispec.Descriptor
	// Image is the image data that the blob encodes.
	Image []byte
}

// Run holds l against the laws of format.Format and format.Plan.
func Run(t *testing.T, l Layer) {
	t.Run("Decode", l.testDecode)
	t.Run("Flips", l.testFlips)
	t.Run("Replay", l.testReplay)
	t.Run("Whole", l.testWhole)
	t.Run("Cancelled", l.testCancelled)
}

func (l Layer) open(t *testing.T, b *Blob) *format.Plan {
	t.Helper()
	require.True(t, l.Format.Match(l.Desc), "the format does not match its own layer")
	plan, err := l.Format.Open(t.Context(), b, l.Desc)
	require.NoError(t, err)
	return plan
}

// testDecode: the chunks cover the image once and decode to it, whatever the
// destination, and the source is not changed.
func (l Layer) testDecode(t *testing.T) {
	plan := l.open(t, NewBlob(l.Blob))
	require.EqualValues(t, len(l.Image), plan.Data.Size())
	var end int64
	for i := range plan.Data.Len() {
		c := plan.Data.At(i)
		require.Equal(t, end, c.Data.Off)
		end = c.Data.End()
		src := l.Blob[c.Blob.Off:c.Blob.End()]
		before := bytes.Clone(src)
		for _, dst := range [][]byte{nil, make([]byte, 3, 5), make([]byte, 0, c.Data.Len+100)} {
			got, err := plan.Decode(dst, src, c)
			require.NoError(t, err)
			require.True(t, bytes.Equal(l.Image[c.Data.Off:c.Data.End()], got), "chunk %d", i)
		}
		require.Equal(t, before, src)
	}
	require.Equal(t, plan.Data.Size(), end)
}

// testFlips: one changed bit in any stored chunk, or a byte less or more, gives
// a CorruptError and no data.
func (l Layer) testFlips(t *testing.T) {
	plan := l.open(t, NewBlob(l.Blob))
	for i := range plan.Data.Len() {
		c := plan.Data.At(i)
		good := l.Blob[c.Blob.Off:c.Blob.End()]
		step := max(1, len(good)/7)
		var bad [][]byte
		for at := 0; at < len(good); at += step {
			flipped := bytes.Clone(good)
			flipped[at] ^= 1 << (at % 8)
			bad = append(bad, flipped)
		}
		bad = append(bad, nil, good[:len(good)-1], append(bytes.Clone(good), 0))
		for _, src := range bad {
			got, err := plan.Decode(nil, src, c)
			var ce *chunk.CorruptError
			require.ErrorAs(t, err, &ce)
			require.Empty(t, got)
		}
	}
}

// testReplay: what Open reads is enough to open the layer again without a blob.
func (l Layer) testReplay(t *testing.T) {
	rec := format.Record(NewBlob(l.Blob))
	_, err := l.Format.Open(t.Context(), rec, l.Desc)
	require.NoError(t, err)
	dead := NewBlob(l.Blob)
	dead.Gate = func(context.Context, []chunk.Extent) error { return io.ErrClosedPipe }
	again, err := format.Replay(dead, rec.Bytes())
	require.NoError(t, err)
	plan, err := l.Format.Open(t.Context(), again, l.Desc)
	require.NoError(t, err)
	require.EqualValues(t, len(l.Image), plan.Data.Size())
	require.Zero(t, dead.Requests())
}

// testWhole: the digest of a complete layer is that of image data and Tail.
func (l Layer) testWhole(t *testing.T) {
	plan := l.open(t, NewBlob(l.Blob))
	if plan.Whole == "" {
		require.Empty(t, plan.Tail)
		return
	}
	require.Equal(t, plan.Whole, digest.FromBytes(append(bytes.Clone(l.Image), plan.Tail...)))
}

// testCancelled: a transport error reaches the caller and is neither ErrNotLazy
// nor corruption, because a retry may help.
func (l Layer) testCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := l.Format.Open(ctx, NewBlob(l.Blob), l.Desc)
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, format.ErrNotLazy)
	var ce *chunk.CorruptError
	require.NotErrorAs(t, err, &ce)
}
