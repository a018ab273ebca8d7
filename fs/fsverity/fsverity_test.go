package fsverity

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/kernel"
)

// supported says whether this machine's temporary directory has fs-verity: only
// what must be so in either case is asserted, by doing it.
func supported(t *testing.T, dir string) bool {
	t.Helper()
	err := Probe(dir)
	if err != nil {
		require.ErrorIs(t, err, kernel.ErrNotSupported, "an answer that says nothing")
		require.ErrorContains(t, err, "fs-verity")
	}
	left, rerr := os.ReadDir(dir)
	require.NoError(t, rerr)
	require.Empty(t, left, "the probe left something behind")
	return err == nil
}

func TestSeal(t *testing.T) {
	dir := t.TempDir()
	works := supported(t, dir)
	path := filepath.Join(dir, "f")
	require.NoError(t, os.WriteFile(path, make([]byte, 10000), 0o600))
	w, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer w.Close()
	r, err := os.Open(path)
	require.NoError(t, err)
	defer r.Close()
	_, err = Measure(r)
	require.ErrorIs(t, err, ErrNotSealed)

	_, err = Seal(r)
	if !works {
		require.ErrorIs(t, err, kernel.ErrNotSupported)
		require.NotErrorIs(t, err, ErrBusy)
		_, err = w.WriteAt([]byte("x"), 1)
		require.NoError(t, err, "a file that could not be sealed is as it was")
		return
	}
	require.ErrorIs(t, err, ErrBusy)
	require.NoError(t, w.Close())
	sum, err := Seal(r)
	require.NoError(t, err)
	again, err := Seal(r)
	require.NoError(t, err)
	require.Equal(t, sum, again)
	measured, err := Measure(r)
	require.NoError(t, err)
	require.Equal(t, sum, measured)
	_, err = os.OpenFile(path, os.O_RDWR, 0)
	require.ErrorIs(t, err, unix.EPERM)

	other := filepath.Join(dir, "g")
	require.NoError(t, os.WriteFile(other, append(make([]byte, 9999), 1), 0o600))
	o, err := os.Open(other)
	require.NoError(t, err)
	defer o.Close()
	differs, err := Seal(o)
	require.NoError(t, err)
	require.NotEqual(t, sum, differs)
}

func TestClosedFile(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	require.NoError(t, err)
	require.NoError(t, f.Close())
	_, err = Seal(f)
	require.Error(t, err)
	_, err = Measure(f)
	require.Error(t, err)
	require.True(t, errors.Is(Probe(filepath.Join(t.TempDir(), "none")), os.ErrNotExist))
}
