package mountproc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
	"github.com/lazyerofs/lazyerofs/fs/kernel"
)

func TestMain(m *testing.M) { drivertest.Main(m) }

const patience = 30 * time.Second

// image is a small image in memory, to be mounted through a descriptor.
func image(tb testing.TB) *os.File {
	tb.Helper()
	b, _, _ := kernel.ProbeImage()
	f, err := os.Create(filepath.Join(tb.TempDir(), "image"))
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, f.Close()) })
	_, err = f.Write(b)
	require.NoError(tb, err)
	return f
}

func order(f *os.File) Order {
	return Order{
		EROFS: &erofs.MountConfig{Source: Path(0), Loop: erofs.LoopFallback, Suid: true, Dev: true},
		Files: []*os.File{f},
	}
}

func TestMount(t *testing.T) {
	_, name, want := kernel.ProbeImage()
	for _, loop := range []erofs.Loop{erofs.LoopFallback, erofs.LoopAlways} {
		o := order(image(t))
		o.EROFS.Loop, o.Read = loop, name
		made, err := Run(t.Context(), o)
		require.NoError(t, err)
		require.Equal(t, want, made.Content)
		require.True(t, erofs.SuperblockAlive(made.Superblock))

		target := t.TempDir()
		info, err := erofs.Attach(made.Mount, made.Superblock, target)
		require.NoError(t, err)
		require.NoError(t, made.Mount.Close())
		require.Equal(t, erofs.MountInfo{Target: target, Superblock: made.Superblock}, info)
		got, err := os.ReadFile(filepath.Join(target, name))
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.NoError(t, unix.Unmount(target, 0))
		ended(t, made.Superblock)
	}
}

func ended(t *testing.T, superblock string) {
	t.Helper()
	require.Eventually(t, func() bool { return !erofs.SuperblockAlive(superblock) }, patience, time.Millisecond)
}

// What is not attached goes with its descriptor.
func TestDropped(t *testing.T) {
	f := image(t)
	made, err := Run(t.Context(), order(f))
	require.NoError(t, err)
	require.False(t, alone(t, f), "a mount that nobody sees")
	require.NoError(t, made.Mount.Close())
	ended(t, made.Superblock)
	require.Eventually(t, func() bool { return alone(t, f) }, patience, 10*time.Millisecond)
}

func TestContext(t *testing.T) {
	made, err := Run(t.Context(), Order{Context: &Context{
		FSType: "tmpfs", Options: [][2]string{{"size", "4096"}}, Flags: []string{"ro"}, Attrs: unix.MOUNT_ATTR_NOEXEC,
	}})
	require.NoError(t, err)
	var st unix.Statfs_t
	require.NoError(t, unix.Fstatfs(int(made.Mount.Fd()), &st))
	require.EqualValues(t, unix.TMPFS_MAGIC, st.Type)
	require.NotZero(t, st.Flags&unix.ST_RDONLY)
	require.NotZero(t, st.Flags&unix.ST_NOEXEC)
	require.NoError(t, made.Mount.Close())
	for _, c := range []*Context{
		{FSType: "nosuchfs"},
		{FSType: "tmpfs", Options: [][2]string{{"nosuchoption", "1"}}},
		{FSType: "tmpfs", Flags: []string{"nosuchflag"}},
		{FSType: "erofs"},
	} {
		_, err := Run(t.Context(), Order{Context: c})
		var failure *RemoteError
		require.ErrorAs(t, err, &failure)
		require.NotZero(t, failure.Errno, "%v", err)
	}
}

func TestFailures(t *testing.T) {
	o := order(image(t))
	o.Read = "nothing"
	_, err := Run(t.Context(), o)
	require.ErrorIs(t, err, unix.ENOENT)
	o.EROFS.Source = "/no/such/image"
	_, err = Run(t.Context(), o)
	require.ErrorIs(t, err, unix.ENOENT)
	require.ErrorContains(t, err, "/no/such/image")
	_, err = Run(t.Context(), Order{})
	require.ErrorContains(t, err, "empty order")
	require.Error(t, Meet(t.Context(), image(t), nil), "not a directory")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Run(ctx, order(image(t)))
	require.ErrorIs(t, err, context.Canceled)
}

// An error is the same on both sides.
func TestRemoteError(t *testing.T) {
	all := fmt.Errorf("%w (%w): %w", unix.ENOTBLK, kernel.ErrNotSupported, erofs.ErrNeedsBlockDevice)
	for _, err := range []error{
		all, errors.New("plain"), kernel.ErrNotSupported,
		&kernel.FSError{FSType: "erofs", Step: "source", Err: unix.EPERM, Log: "no"},
	} {
		b, jerr := json.Marshal(answer{Failure: remote(err)})
		require.NoError(t, jerr)
		a, perr := parseAnswer(b)
		require.NoError(t, perr)
		require.Equal(t, err.Error(), a.Failure.Error())
		for _, target := range []error{unix.ENOTBLK, unix.EPERM, kernel.ErrNotSupported, erofs.ErrNeedsBlockDevice} {
			require.Equal(t, errors.Is(err, target), errors.Is(a.Failure, target), "%v is %v", err, target)
		}
	}
	require.Nil(t, remote(nil))
	_, err := parseAnswer([]byte("{"))
	require.Error(t, err)
}

// A child whose parent is gone attaches nothing and leaves nothing.
func TestParentGone(t *testing.T) {
	f := image(t)
	text, err := json.Marshal(order(nil))
	require.NoError(t, err)
	ours, theirs, err := sockets()
	require.NoError(t, err)
	require.NoError(t, ours.Close())
	var words bytes.Buffer
	cmd := command(string(text), []*os.File{theirs, f}, &words)
	require.Error(t, cmd.Run())
	require.NoError(t, theirs.Close())
	require.Contains(t, words.String(), unix.EPIPE.Error())
	require.Eventually(t, func() bool { return alone(t, f) }, patience, 10*time.Millisecond)
}

// alone reports whether nobody else has f open; a superblock of it, or its loop
// device, has.
func alone(t *testing.T, f *os.File) bool {
	_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK)
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
		require.NoError(t, err)
		return true
	}
	require.ErrorIs(t, err, unix.EAGAIN)
	return false
}

// A child that dies says nothing; its parent says so.
func TestNoAnswer(t *testing.T) {
	ours, theirs, err := sockets()
	require.NoError(t, err)
	var words bytes.Buffer
	cmd := command("{", []*os.File{theirs}, &words)
	require.Error(t, cmd.Run())
	require.NoError(t, theirs.Close())
	require.Contains(t, words.String(), "reading the order")
	_, err = receive(ours)
	require.Error(t, err)
	require.NoError(t, ours.Close())
}

// More at once than may run.
func TestManyAtOnce(t *testing.T) {
	var group errgroup.Group
	for range 3 * maxChildren {
		f := image(t)
		group.Go(func() error {
			made, err := Run(t.Context(), order(f))
			if err != nil {
				return err
			}
			return made.Mount.Close()
		})
	}
	require.NoError(t, group.Wait())
}

func BenchmarkMount(b *testing.B) {
	f := image(b)
	for b.Loop() {
		made, err := Run(b.Context(), order(f))
		require.NoError(b, err)
		require.NoError(b, made.Mount.Close())
	}
}
