package lifetime

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errDown = errors.New("down")

// held is a mount that ends when the test says so.
type held struct {
	*Mount
	w        *Watchers
	end      chan struct{}
	unmounts atomic.Int32
	refusal  error
}

func newHeld(t *testing.T) *held {
	h := &held{w: NewWatchers(), end: make(chan struct{})}
	h.Mount = h.w.Mount(Config{
		Target: "/the/target", Down: errDown,
		Unmount: func(target string) error {
			require.Equal(t, "/the/target", target)
			h.unmounts.Add(1)
			return h.refusal
		},
		Ended: func() bool {
			select {
			case <-h.end:
				return true
			case <-h.w.Stopping():
				return false
			}
		},
	})
	t.Cleanup(func() {
		h.w.Stop()
		h.w.Wait()
	})
	return h
}

func (h *held) isDone() bool { return Closed(h.Done()) }

func TestClose(t *testing.T) {
	h := newHeld(t)
	require.Equal(t, "/the/target", h.Target())
	for range 2 {
		require.NoError(t, h.Close(t.Context()))
	}
	require.EqualValues(t, 1, h.unmounts.Load())
	require.False(t, h.isDone())
	require.False(t, h.Leave(), "it is closed")
	close(h.end)
	<-h.Done()
	require.NoError(t, h.Close(t.Context()))
}

// One that could not be unmounted is still mounted; one that is gone already is closed.
func TestUnmount(t *testing.T) {
	h := newHeld(t)
	h.refusal = unix.EPERM
	require.ErrorIs(t, h.Close(t.Context()), unix.EPERM)
	require.ErrorContains(t, h.Close(t.Context()), "/the/target")
	require.EqualValues(t, 2, h.unmounts.Load())
	h.refusal = unix.EINVAL
	require.NoError(t, h.Close(t.Context()))
	close(h.end)
	<-h.Done()
}

func TestWatch(t *testing.T) {
	h := newHeld(t)
	require.True(t, h.Watch())
	require.True(t, h.Watch())
	close(h.end)
	<-h.Done()
	h.refusal = unix.ENOENT
	require.NoError(t, h.Close(t.Context()), "it ended by itself")
}

func TestRelease(t *testing.T) {
	h := newHeld(t)
	require.True(t, h.Leave())
	require.False(t, h.Leave())
	require.NoError(t, h.Release())
	require.ErrorIs(t, h.Close(t.Context()), errDown)
	require.Zero(t, h.unmounts.Load())
}

func TestStopped(t *testing.T) {
	h := newHeld(t)
	require.True(t, h.Watch())
	require.False(t, h.w.Stopped())
	require.True(t, h.w.Stop())
	require.False(t, h.w.Stop())
	h.w.Wait()
	require.True(t, h.w.Stopped())
	require.False(t, h.isDone())
	require.ErrorIs(t, h.Close(t.Context()), errDown)
	require.Zero(t, h.unmounts.Load())
	require.False(t, h.w.Go(func() { t.Error("run after Stop") }))
	require.False(t, h.w.Await(func() bool { return false }))
	require.True(t, h.w.Await(func() bool { return true }))
	require.False(t, h.w.Pause())

	late := newHeld(t)
	late.w.Stop()
	require.False(t, late.Watch())
}

func TestAwait(t *testing.T) {
	w := NewWatchers()
	n := 0
	require.True(t, w.Await(func() bool { n++; return n == 4 }))
	require.True(t, w.Pause())
}

// A real mount, which nothing but the kernel's list knows.
func TestRealMount(t *testing.T) {
	target := t.TempDir()
	require.NoError(t, unix.Mount("none", target, "tmpfs", 0, ""))
	require.NoError(t, os.WriteFile(filepath.Join(target, "file"), nil, 0o600))
	w := NewWatchers()
	m := w.Mount(Config{Target: target, Ended: func() bool {
		return w.Await(func() bool {
			_, err := os.Stat(filepath.Join(target, "file"))
			return errors.Is(err, os.ErrNotExist)
		})
	}})
	require.NoError(t, m.Close(t.Context()))
	<-m.Done()
	w.Stop()
	w.Wait()
	require.ErrorIs(t, unix.Unmount(target, 0), unix.EINVAL)
}

func TestFinish(t *testing.T) {
	var one, two sync.WaitGroup
	work, cancel := context.WithCancel(context.Background())
	defer cancel()
	require.NoError(t, Finish(t.Context(), cancel, &one, &two))
	require.NoError(t, work.Err())
	two.Go(func() { <-work.Done() })
	late, end := context.WithCancel(t.Context())
	end()
	require.ErrorIs(t, Finish(late, cancel, &one, &two), context.Canceled)
	require.Error(t, work.Err())
}

func TestFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(path, []byte("content"), 0o600))
	f, err := os.Open(path)
	require.NoError(t, err)
	dup, err := DuplicateFile(f)
	require.NoError(t, err)
	require.Equal(t, path, dup.Name())
	require.NoError(t, Control(dup, func(fd int) error {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		require.Equal(t, unix.FD_CLOEXEC, flags)
		return err
	}))
	require.ErrorIs(t, Control(f, func(int) error { return unix.EIO }), unix.EIO)
	source, devices, err := Paths(f, nil)
	require.NoError(t, err)
	require.Empty(t, devices)
	meta, devices, err := Paths(f, dup)
	require.NoError(t, err)
	require.Equal(t, []string{source}, devices)
	for _, p := range []string{source, meta} {
		b, err := os.ReadFile(p)
		require.NoError(t, err)
		require.Equal(t, "content", string(b))
	}
	require.NoError(t, f.Close())
	require.NoError(t, dup.Close())
	_, err = DuplicateFile(f)
	require.Error(t, err)
	_, _, err = Paths(f, nil)
	require.Error(t, err)
}
