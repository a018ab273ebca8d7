//go:build guest

package cachefiles

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
)

// A mount that is gone leaves no cache file, and its driver another cache.
func TestNothingStays(t *testing.T) {
	k, dir := &drivertest.Keeper{}, t.TempDir()
	img := drivertest.NewImage(t, 1, false)
	for range 2 { // the second one binds a directory that was used
		d := newDriver(t, k, Config{Dir: dir})
		require.NoError(t, d.Probe(t.TempDir()))
		l := newLayer(t, img)
		at := t.TempDir()
		m, err := d.Mount(t.Context(), at, l)
		require.NoError(t, err)
		require.NoError(t, d.Probe(t.TempDir()), "a driver at work cannot be probed")
		got, err := os.ReadFile(filepath.Join(at, "sparse"))
		require.NoError(t, err)
		require.Equal(t, img.Files["sparse"], got)
		require.NoError(t, m.Close(t.Context()))
		<-m.Done()
		found, err := filepath.Glob(filepath.Join(dir, "cache/*/@*/*"))
		require.NoError(t, err)
		require.Empty(t, found)
		require.NoError(t, d.Shutdown(t.Context()))
		require.Empty(t, k.Names())
	}
}

// Two caches cannot be at once, and say so.
func TestDeviceIsBusy(t *testing.T) {
	busy, err := os.OpenFile(devicePath, os.O_RDWR, 0)
	require.NoError(t, err)
	defer busy.Close()
	d := newDriver(t, &drivertest.Keeper{}, Config{Dir: t.TempDir()})
	require.ErrorIs(t, d.Probe(t.TempDir()), unix.EBUSY)
	_, err = d.Mount(t.Context(), t.TempDir(), newLayer(t, drivertest.NewBigImage(t, 1<<20)))
	require.ErrorIs(t, err, unix.EBUSY)
	require.NoError(t, d.Shutdown(t.Context()))
}

// When the keeper dies too, the cache ends: every read fails, none sees zeros, and
// nobody can adopt the mount.
func TestKeeperAndDriverGone(t *testing.T) {
	k := &drivertest.Keeper{}
	d := newDriver(t, k, Config{Dir: t.TempDir()})
	l, at := newLayer(t, drivertest.NewImage(t, 1, false)), t.TempDir()
	m, err := d.Mount(t.Context(), at, l)
	require.NoError(t, err)
	require.NoError(t, d.Shutdown(t.Context()))
	require.NoError(t, m.Release())
	require.NoError(t, k.Close())

	_, err = os.ReadFile(filepath.Join(at, "dir0/file9"))
	require.ErrorIs(t, err, syscall.EIO)
	d = newDriver(t, k, Config{Dir: t.TempDir()})
	_, err = d.Adopt(t.Context(), at, l)
	require.ErrorIs(t, err, ErrCacheLost)
	require.NoError(t, unix.Unmount(at, 0))

	// The next mount works.
	m, err = d.Mount(t.Context(), at, l)
	require.NoError(t, err)
	_, err = os.ReadFile(filepath.Join(at, "dir0/file9"))
	require.NoError(t, err)
	require.NoError(t, m.Close(t.Context()))
	<-m.Done()
	require.NoError(t, d.Shutdown(t.Context()))
}

// A driver that vanishes with reads taken and not answered: its successor is asked
// again. The objects' descriptors may be lost with it; the kernel opens them anew.
func TestSuccessorAnswersWhatWasTaken(t *testing.T) {
	for name, lose := range map[string]bool{"objects kept": false, "objects lost": true} {
		t.Run(name, func(t *testing.T) {
			k, dir := &drivertest.Keeper{}, t.TempDir()
			d := newDriver(t, k, Config{Dir: dir})
			img := drivertest.NewImage(t, 1, true)
			l, at := newLayer(t, img), t.TempDir()
			_, err := d.Mount(t.Context(), at, l)
			require.NoError(t, err)
			release := l.Hold()
			reader := exec.CommandContext(t.Context(), "cat", filepath.Join(at, "dir2/file8"))
			out := &writer{}
			reader.Stdout = out
			require.NoError(t, reader.Start())
			require.Eventually(t, func() bool { return d.Stats().Misses > 0 }, wait, 1e6)
			d.vanish()

			inherited, err := k.Inherited()
			require.NoError(t, err)
			if lose {
				inherited = onlyDevice(t, k, inherited)
			}
			next := newDriver(t, k, Config{Dir: dir, Inherited: inherited})
			m, err := next.Adopt(t.Context(), at, l)
			require.NoError(t, err)
			release()
			require.NoError(t, reader.Wait())
			require.Equal(t, img.Files["dir2/file8"], out.b)
			require.NoError(t, m.Close(t.Context()))
			<-m.Done()
			require.NoError(t, next.Shutdown(t.Context()))
			require.Empty(t, k.Names())
		})
	}
}

type writer struct{ b []byte }

func (w *writer) Write(p []byte) (int, error) {
	w.b = append(w.b, p...)
	return len(p), nil
}

// vanish does what kill -9 does, as far as the kernel is concerned: it closes what
// is open and answers nothing.
func (d *Driver) vanish() {
	d.complete = func(*os.File, uint32) error { return nil }
	d.watchers.Stop()
	d.wakeLoop()
	d.loop.Wait()
	d.mu.Lock()
	d.down = true
	for _, o := range d.objects {
		_ = o.file.Close()
	}
	d.mu.Unlock()
	_ = d.dev.close()
	for m := range d.mounts {
		_ = m.plan.close()
	}
	d.cancel()
	d.tasks.Wait()
	_ = unix.Close(d.wake)
}

// onlyDevice drops the objects.
func onlyDevice(t *testing.T, k *drivertest.Keeper, all driver.Inheritance) driver.Inheritance {
	for name, files := range all {
		if name == DeviceName {
			continue
		}
		require.NoError(t, k.Remove(name))
		for _, f := range files {
			require.NoError(t, f.Close())
		}
	}
	return driver.Inheritance{DeviceName: all[DeviceName]}
}
