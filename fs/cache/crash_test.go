package cache

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// disk plays a disk that loses power: it remembers what was synced.
type disk struct {
	t      *testing.T
	l      *layerOf
	data   []byte // as of the last sync
	bitmap []byte
	states int
}

// sync is the File's datasync. Before a sync takes effect it tries every state
// that a loss of power could leave.
func (d *disk) sync(f *os.File) error {
	d.crash()
	switch filepath.Base(f.Name()) {
	case dataName:
		d.data = contents(d.t, d.l.opts.Dir, dataName)
	case bitmapName:
		d.bitmap = contents(d.t, d.l.opts.Dir, bitmapName)
	}
	d.crash()
	return nil
}

// crash opens copies of the layer: with all that was written, with only what
// was synced, with the bitmap torn at several places.
func (d *disk) crash() {
	d.t.Helper()
	dir := d.l.opts.Dir
	data, bitmap := contents(d.t, dir, dataName), contents(d.t, dir, bitmapName)
	half := bytes.Clone(data) // every other unsynced page made it
	for off := 0; off < len(half); off += 8192 {
		copy(half[off:off+4096], d.data[off:])
	}
	bitmaps := [][]byte{bitmap, d.bitmap}
	for _, cut := range []int{1, 20, 60, 90, 512, 4096, 4096 + 95, 4096 + 512} {
		torn := bytes.Clone(d.bitmap)
		copy(torn[:cut], bitmap)
		bitmaps = append(bitmaps, torn)
	}
	for _, data := range [][]byte{data, d.data, half} {
		for _, bitmap := range bitmaps {
			d.reopen(data, bitmap)
		}
	}
}

func (d *disk) reopen(data, bitmap []byte) {
	d.t.Helper()
	l := *d.l
	l.opts.Dir = copyDir(d.t, d.l.opts.Dir, data, bitmap)
	f := l.open(d.t)
	l.check(d.t, f)
	require.NoError(d.t, f.Close(d.t.Context()))
	require.NoError(d.t, os.RemoveAll(l.opts.Dir))
	d.states++
}

// TestPowerLoss cuts the power before and after every sync of a layer that is
// being filled: no resident chunk may ever be wrong.
func TestPowerLoss(t *testing.T) {
	l := newLayer(t, t.TempDir(), 24*testChunk)
	f := l.open(t)
	d := &disk{t: t, l: l, data: make([]byte, 24*testChunk), bitmap: contents(t, l.opts.Dir, bitmapName)}
	f.datasync = d.sync
	for n, i := range rand.New(rand.NewPCG(5, 6)).Perm(23) { // never whole: the flusher must not come in between
		l.write(t, f, i)
		if n%5 == 4 {
			require.NoError(t, f.Flush(t.Context()))
		}
	}
	require.NoError(t, f.Flush(t.Context()))
	require.Greater(t, d.states, 500)
	l.opts.Dir = copyDir(t, l.opts.Dir, d.data, d.bitmap)
	require.Equal(t, 23, l.check(t, l.open(t)), "what was flushed survives")
}

// TestBitsWaitForData: with the data never synced, the bitmap on disk stays
// empty.
func TestBitsWaitForData(t *testing.T) {
	l := newLayer(t, t.TempDir(), 4*testChunk)
	f := l.open(t)
	before := contents(t, l.opts.Dir, bitmapName)
	l.write(t, f, 0, 1)
	stop := errors.New("no sync")
	f.datasync = func(file *os.File) error {
		require.Equal(t, f.Data(), file)
		require.Equal(t, before, contents(t, l.opts.Dir, bitmapName), "bits were written before the data was synced")
		return stop
	}
	require.ErrorIs(t, f.Flush(t.Context()), stop)
	require.Equal(t, before, contents(t, l.opts.Dir, bitmapName))
}

// TestFailedSync: chunks whose data the kernel lost are forgotten, older ones
// are kept, and the layer can be filled again.
func TestFailedSync(t *testing.T) {
	l := newLayer(t, t.TempDir(), 4*testChunk)
	f := l.open(t)
	l.write(t, f, 0)
	require.NoError(t, f.Flush(t.Context()))
	f.datasync = func(*os.File) error { return unix.EIO }
	l.write(t, f, 1, 2)
	require.ErrorIs(t, f.Flush(t.Context()), unix.EIO)
	require.Equal(t, 1, l.check(t, f))
	resident, _ := f.Progress()
	require.EqualValues(t, testChunk, resident)
	f.datasync = datasync
	l.write(t, f, 1, 2)
	require.NoError(t, f.Flush(t.Context()))
	require.Equal(t, 3, l.check(t, f))
}

// TestFailedSyncOfWholeLayer: a layer that is whole in memory only is not
// complete.
func TestFailedSyncOfWholeLayer(t *testing.T) {
	l := newLayer(t, t.TempDir(), 2*testChunk)
	f := l.open(t)
	failed := make(chan struct{}, 8)
	f.datasync = func(*os.File) error {
		select {
		case failed <- struct{}{}:
		default:
		}
		return unix.EIO
	}
	l.write(t, f, 0, 1)
	<-failed
	require.Error(t, errors.Join(f.Flush(t.Context()), f.Verify(t.Context(), l.opts.ID, nil)))
	select {
	case <-f.Complete():
		t.Fatal("complete without a sync")
	default:
	}
	require.False(t, f.Resident(0, testChunk))
}

// TestDistrusted: a bitmap is not believed when anything about it or about the
// data file is not as it was.
func TestDistrusted(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, l *layerOf){
		"data replaced": func(t *testing.T, l *layerOf) {
			path := filepath.Join(l.opts.Dir, dataName)
			require.NoError(t, os.Remove(path))
			require.NoError(t, os.WriteFile(path, make([]byte, 8*testChunk), 0o600))
		},
		"data removed": func(t *testing.T, l *layerOf) {
			require.NoError(t, os.Remove(filepath.Join(l.opts.Dir, dataName)))
		},
		"data cut": func(t *testing.T, l *layerOf) {
			require.NoError(t, os.Truncate(filepath.Join(l.opts.Dir, dataName), 4096))
		},
		"tag removed": func(t *testing.T, l *layerOf) {
			require.NoError(t, unix.Removexattr(filepath.Join(l.opts.Dir, dataName), tagXattr))
		},
		"tag of another length": func(t *testing.T, l *layerOf) {
			require.NoError(t, unix.Setxattr(filepath.Join(l.opts.Dir, dataName), tagXattr, make([]byte, 17), 0))
		},
		"bitmap removed": func(t *testing.T, l *layerOf) {
			require.NoError(t, os.Remove(filepath.Join(l.opts.Dir, bitmapName)))
		},
		"bitmap cut": func(t *testing.T, l *layerOf) {
			require.NoError(t, os.Truncate(filepath.Join(l.opts.Dir, bitmapName), 100))
		},
		"another layer": func(_ *testing.T, l *layerOf) { l.opts.ID = l.opts.ID[:len(l.opts.ID)-1] + "0" },
		"another map": func(t *testing.T, l *layerOf) {
			other := bytes.Clone(l.image)
			other[0]++
			l.opts.Map = testMap(t, other)
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayer(t, t.TempDir(), 8*testChunk)
			if l.opts.ID[len(l.opts.ID)-1] == '0' {
				t.Fatal("choose another image")
			}
			f := l.open(t)
			l.write(t, f, 0, 1, 2)
			require.NoError(t, f.Close(t.Context()))
			spoil(t, l)
			f = l.open(t)
			for i := range 8 {
				require.False(t, f.ResidentChunk(i))
			}
			l.write(t, f, 5)
			require.NoError(t, f.Close(t.Context()))
			require.Equal(t, 1, l.check(t, l.open(t)), "it works again")
		})
	}
}

// TestBitmapFlips: one changed bit anywhere in the newest slot never makes a
// chunk resident that was not; at worst an older state comes back.
func TestBitmapFlips(t *testing.T) {
	l := newLayer(t, t.TempDir(), 8*testChunk)
	f := l.open(t)
	l.write(t, f, 0)
	require.NoError(t, f.Flush(t.Context()))
	l.write(t, f, 1)
	require.NoError(t, f.Close(t.Context()))
	good := contents(t, l.opts.Dir, bitmapName)
	data := contents(t, l.opts.Dir, dataName)
	second := *l
	for i := 0; i < slotHeaderLen+8+32; i++ {
		bad := bytes.Clone(good)
		bad[i] ^= 1 << (i % 8)
		bad[4096+i] ^= 1 << (i % 8)
		second.opts.Dir = copyDir(t, l.opts.Dir, data, bad)
		f := second.open(t)
		require.Zero(t, second.check(t, f), "byte %d", i)
		require.NoError(t, f.Close(t.Context()))
	}
}

// smallDisk mounts a tmpfs of n bytes.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	return dir
}

// TestDiskFull: chunks that do not fit are not resident, the others stay right,
// and the layer goes on when there is room again.
func TestDiskFull(t *testing.T) {
	root := smallDisk(t, "256k")
	l := newLayer(t, filepath.Join(root, "layer"), 64*testChunk)
	f := l.open(t)
	full := 0
	for i := range 64 {
		if err := f.WriteChunk(i, l.chunk(i)); err != nil {
			require.ErrorIs(t, err, ErrNoSpace)
			require.ErrorIs(t, err, unix.ENOSPC)
			require.False(t, f.ResidentChunk(i))
			full++
		}
	}
	require.Greater(t, full, 30)
	require.Equal(t, 64-full, l.check(t, f))
	require.NoError(t, f.Flush(t.Context()), "the bitmap's room was reserved")
	require.ErrorIs(t, SaveIndex(l.opts.Dir, make([]byte, 64<<10)), ErrNoSpace)

	require.NoError(t, unix.Mount("tmpfs", root, "tmpfs", unix.MS_REMOUNT, "size=2m"))
	for i := range 64 {
		l.write(t, f, i)
	}
	<-f.Complete()
	require.Equal(t, 64, l.check(t, f))
	require.NoError(t, f.Close(t.Context()))
}

// TestOpenOnFullDisk: not even the bitmap fits.
func TestOpenOnFullDisk(t *testing.T) {
	root := smallDisk(t, "16k")
	require.ErrorIs(t, os.WriteFile(filepath.Join(root, "ballast"), make([]byte, 64<<10), 0o600), unix.ENOSPC)
	before := openDescriptors(t)
	_, err := OpenFile(newLayer(t, filepath.Join(root, "layer"), 64*testChunk).opts)
	require.ErrorIs(t, err, ErrNoSpace)
	require.Equal(t, before, openDescriptors(t))
}

// TestKilledProcess: a process that dies by SIGKILL while it fills leaves a
// layer that opens, and the kernel gives its lock back.
func TestKilledProcess(t *testing.T) {
	if dir := os.Getenv("LAZYEROFS_TEST_FILL"); dir != "" {
		l := newLayer(t, dir, 8*testChunk)
		f := l.open(t)
		l.write(t, f, 0, 1, 2)
		require.NoError(t, f.Flush(context.Background()))
		l.write(t, f, 3)
		require.NoError(t, unix.Kill(os.Getpid(), unix.SIGKILL))
		select {}
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=TestKilledProcess$")
	cmd.Env = append(os.Environ(), "LAZYEROFS_TEST_FILL="+dir)
	out, err := cmd.CombinedOutput()
	require.ErrorContains(t, err, "killed", "%s", out)
	l := newLayer(t, dir, 8*testChunk)
	require.Equal(t, 3, l.check(t, l.open(t)))
}
