package cache

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testChunk = 8192

// testImage is n bytes of noise without a zero page.
func testImage(n int) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n)}).Read(p)
	return p
}

// testMap is the raw chunk map of image.
func testMap(t testing.TB, image []byte) *chunk.Index {
	t.Helper()
	b := chunk.NewIndexBuilder(chunk.CodecNone, sha256.Size)
	for off := 0; off < len(image); off += testChunk {
		sum := sha256.Sum256(image[off:min(off+testChunk, len(image))])
		require.NoError(t, b.Add(int64(off), int64(off), sum[:]))
	}
	x, err := chunk.ParseIndex(b.Bytes(int64(len(image))), int64(len(image)))
	require.NoError(t, err)
	return x
}

// layerOf is a layer under test.
type layerOf struct {
	image []byte
	m     *chunk.Index
	opts  Options
}

// newLayer describes a layer of n bytes in dir; its flusher waits for ever.
func newLayer(t testing.TB, dir string, n int) *layerOf {
	image := testImage(n)
	m := testMap(t, image)
	return &layerOf{image: image, m: m, opts: Options{
		Dir: dir, ID: digest.FromBytes(image), Map: m, FlushInterval: 1000 * time.Hour,
	}}
}

func (l *layerOf) open(t testing.TB) *File {
	t.Helper()
	f, err := OpenFile(l.opts)
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close(t.Context()) })
	return f
}

func (l *layerOf) chunk(i int) []byte {
	c := l.m.At(i)
	return l.image[c.Data.Off:c.Data.End()]
}

func (l *layerOf) write(t testing.TB, f *File, chunks ...int) {
	t.Helper()
	for _, i := range chunks {
		require.NoError(t, f.WriteChunk(i, l.chunk(i)))
	}
}

// check holds every resident chunk against the truth and returns how many
// there are.
func (l *layerOf) check(t testing.TB, f *File) int {
	t.Helper()
	n := 0
	for i := range l.m.Len() {
		c := l.m.At(i)
		got := make([]byte, c.Data.Len)
		_, err := f.ReadAt(got, c.Data.Off)
		if !f.ResidentChunk(i) {
			require.ErrorIs(t, err, ErrNotResident)
			continue
		}
		if err != nil {
			require.ErrorIs(t, err, io.EOF)
		}
		require.True(t, bytes.Equal(l.image[c.Data.Off:c.Data.End()], got), "chunk %d is resident and wrong", i)
		n++
	}
	return n
}

// copyDir copies a layer's directory as a crash would leave it: data and bitmap
// may be given other contents.
func copyDir(t testing.TB, from string, data, bitmap []byte) string {
	t.Helper()
	to := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(to, dataName), data, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(to, bitmapName), bitmap, 0o600))
	var buf [64]byte
	n, err := unix.Getxattr(filepath.Join(from, dataName), tagXattr, buf[:])
	if errors.Is(err, unix.ENODATA) {
		return to
	}
	require.NoError(t, err)
	require.NoError(t, unix.Setxattr(filepath.Join(to, dataName), tagXattr, buf[:n], 0))
	return to
}

func contents(t testing.TB, dir, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	require.NoError(t, err)
	return b
}

// openDescriptors returns how many descriptors this process has.
func openDescriptors(t testing.TB) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(d)
}
