package dmverity

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/kernel"
)

// works says whether this machine has dm-verity; guests of tests/vm must.
func works(t *testing.T) bool {
	t.Helper()
	dir := t.TempDir()
	err := Probe(dir)
	if err != nil {
		require.ErrorIs(t, err, kernel.ErrNotSupported, "an answer that says nothing")
	}
	left, rerr := os.ReadDir(dir)
	require.NoError(t, rerr)
	require.Empty(t, left, "the probe left something behind")
	return err == nil
}

// loopsOf lists the loop devices that are bound to the file at path.
func loopsOf(t *testing.T, path string) (loops []string) {
	t.Helper()
	names, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	require.NoError(t, err)
	for _, n := range names {
		if b, err := os.ReadFile(n); err == nil && string(bytes.TrimSpace(b)) == path {
			loops = append(loops, n)
		}
	}
	return loops
}

// devices lists ours.
func devices(t *testing.T) (names []string) {
	t.Helper()
	all, err := filepath.Glob("/sys/block/dm-*/dm/name")
	require.NoError(t, err)
	for _, n := range all {
		if b, err := os.ReadFile(n); err == nil && bytes.HasPrefix(b, []byte(namePrefix)) {
			names = append(names, string(b))
		}
	}
	return names
}

func TestDevice(t *testing.T) {
	image := randomImage(300)
	path := filepath.Join(t.TempDir(), "image")
	v, err := appendTo(path, image)
	require.NoError(t, err)
	if !works(t) {
		_, err := Open(path, v)
		require.ErrorIs(t, err, kernel.ErrNotSupported)
		require.NotErrorIs(t, err, ErrMismatch)
		require.Empty(t, loopsOf(t, path), "a loop device was left behind")
		return
	}
	d, err := Open(path, v)
	require.NoError(t, err)
	f, err := os.Open(d.Path())
	require.NoError(t, err)
	require.NoError(t, d.Release(), "it is in use")
	got := make([]byte, len(image))
	_, err = f.ReadAt(got, 0)
	require.NoError(t, err)
	require.True(t, bytes.Equal(image, got))
	require.NoError(t, f.Close())
	gone(t, path)

	// The same with a block that is not what it was.
	w, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = w.WriteAt([]byte("x"), 100*blockSize+7)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	d, err = Open(path, v)
	require.NoError(t, err)
	f, err = os.Open(d.Path())
	require.NoError(t, err)
	require.NoError(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM)) // no read-ahead into it
	_, err = f.ReadAt(got[:blockSize], 99*blockSize)
	require.NoError(t, err)
	require.True(t, bytes.Equal(image[99*blockSize:100*blockSize], got[:blockSize]))
	_, err = f.ReadAt(got[:blockSize], 100*blockSize)
	require.ErrorIs(t, err, unix.EIO)
	require.NoError(t, f.Close())
	require.NoError(t, d.Release(), "nobody uses it")
	gone(t, path)
}

// gone waits until nothing is left of devices on the file at path; loop devices
// clear themselves a moment after their last user.
func gone(t *testing.T, path string) {
	t.Helper()
	require.Eventually(t, func() bool { return len(devices(t)) == 0 && len(loopsOf(t, path)) == 0 }, 20*time.Second, 10*time.Millisecond)
}

func TestDeviceOfAnotherImage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	v, err := appendTo(path, randomImage(3))
	require.NoError(t, err)
	v.HashOffset -= blockSize
	_, err = Open(path, v)
	require.ErrorIs(t, err, ErrMismatch)
	_, err = Open(filepath.Join(t.TempDir(), "none"), v)
	require.ErrorIs(t, err, os.ErrNotExist)
	v.HashOffset += blockSize
	v.Root = digest.FromString("other")
	if works(t) {
		d, err := Open(path, v)
		require.NoError(t, err, "the kernel looks at the root when it reads")
		_, err = os.ReadFile(d.Path())
		require.ErrorIs(t, err, unix.EIO)
		require.NoError(t, d.Release())
	}
	gone(t, path)
}
