package cache

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/fsverity"
	"github.com/lazyerofs/lazyerofs/fs/kernel"
)

// whole fills and flushes a layer.
func (l *layerOf) whole(t testing.TB) *File {
	t.Helper()
	f := l.open(t)
	for i := range l.m.Len() {
		l.write(t, f, i)
	}
	require.NoError(t, f.Flush(t.Context()))
	return f
}

// sealable seals f if this machine can, and checks the refusal if it cannot.
func sealable(t *testing.T, f *File) bool {
	t.Helper()
	works := fsverity.Probe(f.dir) == nil
	err := f.Seal(t.Context())
	if works {
		require.NoError(t, err)
		require.NotEmpty(t, f.Sealed())
	} else {
		require.ErrorIs(t, err, kernel.ErrNotSupported)
		require.Empty(t, f.Sealed())
		require.NoFileExists(t, filepath.Join(f.dir, sealName))
	}
	return works
}

func accessMode(t *testing.T, f *os.File) int {
	t.Helper()
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	require.NoError(t, err)
	return flags & unix.O_ACCMODE
}

func TestSealOfAnIncompleteLayer(t *testing.T) {
	l := newLayer(t, t.TempDir(), 5*testChunk)
	f := l.open(t)
	l.write(t, f, 0, 1, 2, 3)
	require.ErrorIs(t, f.Seal(t.Context()), ErrNotResident)
	f.datasync = func(*os.File) error { return unix.EIO } // or the flusher may be first
	l.write(t, f, 4)
	require.ErrorIs(t, f.Seal(t.Context()), ErrNotResident, "it is not on disk")
	f.flushing.Lock()
	f.datasync = datasync
	f.flushing.Unlock()
	require.Equal(t, unix.O_RDWR, accessMode(t, f.Data()), "it still needs its writer")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, f.Seal(ctx), context.Canceled)
}

// TestSealKeepsTheNumber: who has the descriptor goes on with it, and all is there
// after a restart, sealed or not.
func TestSealKeepsTheNumber(t *testing.T) {
	before := openDescriptors(t)
	l := newLayer(t, t.TempDir(), 5*testChunk+100)
	f := l.whole(t)
	data, number := f.Data(), f.Data().Fd()
	sealed := sealable(t, f)
	require.Same(t, data, f.Data())
	require.Equal(t, number, data.Fd())
	require.Equal(t, unix.O_RDONLY, accessMode(t, data))
	require.Equal(t, 6, l.check(t, f))
	require.NoError(t, f.Verify(t.Context(), l.opts.ID, nil))
	l.write(t, f, 0) // what is there is not written again
	require.NoError(t, f.Close(t.Context()))

	f = l.open(t)
	require.True(t, f.Verified())
	require.Equal(t, sealed, f.Sealed() != "")
	require.Equal(t, 6, l.check(t, f))
	select {
	case <-f.Complete():
	default:
		t.Fatal("it is not complete any more")
	}
	require.Equal(t, sealed, sealable(t, f), "a second time")
	require.NoError(t, f.Close(t.Context()))
	require.Equal(t, before, openDescriptors(t))
}

// TestSealWithAWriter: somebody else could still change the file.
func TestSealWithAWriter(t *testing.T) {
	l := newLayer(t, t.TempDir(), 5*testChunk)
	f := l.whole(t)
	w, err := os.OpenFile(filepath.Join(f.dir, dataName), os.O_RDWR, 0)
	require.NoError(t, err)
	if err = f.Seal(t.Context()); fsverity.Probe(f.dir) == nil {
		require.ErrorIs(t, err, ErrWriters)
	} else {
		require.ErrorIs(t, err, kernel.ErrNotSupported)
	}
	require.Empty(t, f.Sealed())
	require.NoError(t, w.Close())
	sealable(t, f)
	require.Equal(t, 5, l.check(t, f))
}

// TestSealOfAnotherFile: a seal was recorded, and the file is not the one that was
// sealed. Nothing of it is believed, and the layer can be filled again.
func TestSealOfAnotherFile(t *testing.T) {
	l := newLayer(t, t.TempDir(), 5*testChunk)
	f := l.whole(t)
	require.NoError(t, f.Verify(t.Context(), l.opts.ID, nil))
	sealable(t, f)
	require.NoError(t, f.Close(t.Context()))
	require.NoError(t, os.WriteFile(filepath.Join(f.dir, sealName), []byte("sha256:"+l.opts.ID.Encoded()+"\n"), 0o600))
	f = l.open(t)
	require.Zero(t, l.check(t, f))
	require.False(t, f.Verified())
	require.Empty(t, f.Sealed())
	require.NoFileExists(t, filepath.Join(f.dir, sealName))
	require.NoError(t, f.Close(t.Context()))
	f = l.whole(t)
	require.Equal(t, 5, l.check(t, f))
}

// TestSealOutlivesTheBitmap: what cannot be written to and is not known to be whole
// is of no use.
func TestSealOutlivesTheBitmap(t *testing.T) {
	for _, name := range []string{bitmapName, sealName} {
		l := newLayer(t, t.TempDir(), 5*testChunk)
		f := l.whole(t)
		require.NoError(t, f.Verify(t.Context(), l.opts.ID, nil))
		sealed := sealable(t, f)
		require.NoError(t, f.Close(t.Context()))
		if err := os.Remove(filepath.Join(f.dir, name)); sealed || name == bitmapName {
			require.NoError(t, err)
		}
		f = l.open(t)
		if name == bitmapName {
			require.Zero(t, l.check(t, f))
			require.Empty(t, f.Sealed())
			l.write(t, f, 0, 1, 2, 3, 4)
			require.Equal(t, 5, l.check(t, f))
			continue
		}
		// A process ended between the seal and its record.
		require.Equal(t, !sealed, f.Verified(), "what nobody recorded is read again")
		require.Equal(t, sealed, f.Sealed() != "")
		require.NoError(t, f.Verify(t.Context(), l.opts.ID, nil))
		if sealable(t, f) {
			require.FileExists(t, filepath.Join(f.dir, sealName))
		}
	}
}

// TestSealedFileThatIsTooShort cannot be lengthened, so it is replaced.
func TestSealedFileThatIsTooShort(t *testing.T) {
	l := newLayer(t, t.TempDir(), 5*testChunk)
	path := filepath.Join(l.opts.Dir, dataName)
	require.NoError(t, os.WriteFile(path, make([]byte, testChunk), 0o600))
	r, err := os.Open(path)
	require.NoError(t, err)
	_, err = fsverity.Seal(r)
	require.Equal(t, fsverity.Probe(l.opts.Dir) == nil, err == nil, "%v", err)
	require.NoError(t, r.Close())
	f := l.whole(t)
	require.Equal(t, 5, l.check(t, f))
	_, err = f.ReadAt(make([]byte, 10), 5*testChunk-5)
	require.ErrorIs(t, err, io.EOF)
}
