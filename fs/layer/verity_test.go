package layer

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/fsverity"
)

// treed says that the image data of r ends in a hash tree.
func (r *rig) treed(image int64) {
	r.plan.Verity = &chunk.Verity{HashOffset: image, BlockSize: chunk.VerityBlockSize}
}

func completes(t *testing.T, l *Layer) {
	t.Helper()
	select {
	case <-l.Complete():
	case <-time.After(20 * time.Second):
		t.Fatal("the layer is not complete")
	}
}

// TestTreeIsFetchedWithTheLastOfTheImage: nobody reads a hash tree, so it comes by
// itself, and not before the image is there.
func TestTreeIsFetchedWithTheLastOfTheImage(t *testing.T) {
	r := newRig(t, 20*testChunk)
	r.treed(17 * testChunk)
	l := r.open()
	r.read(l, 0, 16*testChunk)
	r.settled(l)
	require.Equal(t, 16, r.checkResident(l))
	r.read(l, 16*testChunk, 1)
	completes(t, l)
	require.Equal(t, 20, r.checkResident(l))
	require.EqualValues(t, 17*testChunk, l.plan.ImageSize())
	require.Equal(t, r.plan.Verity, l.Verity())
}

// TestTreeThatDoesNotCome is asked for again when something else was fetched, and by
// the next process.
func TestTreeThatDoesNotCome(t *testing.T) {
	r := newRig(t, 20*testChunk)
	r.treed(17 * testChunk)
	down := errors.New("the registry is down")
	r.blob.Gate = func(_ context.Context, es []chunk.Extent) error {
		if es[0].Off >= r.plan.Data.At(17).Blob.Off {
			return down
		}
		return nil
	}
	l := r.open()
	r.read(l, 0, 17*testChunk)
	r.settled(l)
	require.Equal(t, 17, r.checkResident(l))
	require.NoError(t, l.Close(t.Context()))
	r.blob.Gate = nil
	completes(t, r.open())
}

// TestSeal: a complete layer is sealed where there is fs-verity, and is as good as
// before where there is none.
func TestSeal(t *testing.T) {
	r := newRig(t, 20*testChunk)
	r.plan.Whole = r.wholeDigest()
	r.conf.Seal = true
	done := make(chan error, 1)
	r.conf.Finished = func(err error) { done <- err }
	l := r.open()
	r.read(l, 0, 20*testChunk)
	completes(t, l)
	require.NoError(t, <-done)
	if fsverity.Probe(r.dir) == nil {
		require.Eventually(t, func() bool { return l.file.Sealed() != "" }, 20*time.Second, time.Millisecond)
		_, err := os.OpenFile(filepath.Join(r.dir, "data"), os.O_RDWR, 0)
		require.ErrorIs(t, err, os.ErrPermission)
	}
	require.Equal(t, 20, r.checkResident(l))
	require.NoError(t, l.Close(t.Context()))
	l = r.open()
	completes(t, l)
	require.Equal(t, 20, r.checkResident(l))
}

// TestSealWaitsForWriters: a keeper of descriptors lets go a moment later.
func TestSealWaitsForWriters(t *testing.T) {
	r := newRig(t, 4*testChunk)
	r.plan.Whole = r.wholeDigest()
	r.conf.Seal = true
	l := r.open()
	writer, err := os.OpenFile(filepath.Join(r.dir, "data"), os.O_RDWR, 0)
	require.NoError(t, err)
	r.read(l, 0, 4*testChunk)
	completes(t, l)
	require.Empty(t, l.file.Sealed())
	require.NoError(t, writer.Close())
	if fsverity.Probe(r.dir) == nil {
		require.Eventually(t, func() bool { return l.file.Sealed() != "" }, 20*time.Second, time.Millisecond)
	}
	require.Equal(t, 4, r.checkResident(l))
	require.NoError(t, l.Close(t.Context()), "it ends what waits")
}
