package cachefiles

import (
	"context"
	"errors"
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
)

func bigLayer(t *testing.T) (*drivertest.Image, *drivertest.Layer) {
	t.Helper()
	img := drivertest.NewBigImage(t, 1<<20)
	return img, newLayer(t, img)
}

func TestOpenReadClose(t *testing.T) {
	img, l := bigLayer(t)
	f := newFake(t, Config{})
	f.mount(l, key)
	fd, path := f.object("o")
	f.send(openMsg(5, 17, fd, volume, key))
	size, err := sizeOf(l.Data())
	require.NoError(t, err)
	require.Equal(t, "copen 5,"+itoa(size), f.command())
	name := kept{msg: 5, id: 17, size: size, key: key}.name()
	require.ElementsMatch(t, []string{DeviceName, name}, f.keeper.Names())

	f.send(readMsg(6, 17, 128<<10, 4096))
	require.EqualValues(t, 6, f.done())
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, img.Data[128<<10:132<<10], got[128<<10:132<<10])
	require.Equal(t, make([]byte, 128<<10), got[:128<<10], "more was written than was there")
	require.EqualValues(t, 1, f.d.Stats().Misses)

	// What is there is written ahead, to the end of the window.
	require.NoError(t, l.Fill(t.Context()))
	f.send(readMsg(7, 17, 256<<10, 4096))
	require.EqualValues(t, 7, f.done())
	got, err = os.ReadFile(path)
	require.NoError(t, err)
	require.Len(t, got, 512<<10)
	require.Equal(t, img.Data[256<<10:512<<10], got[256<<10:])
	require.EqualValues(t, 1, f.d.Stats().Hits)
	require.Equal(t, 1, f.d.Stats().Served)

	f.send(msg(8, opClose, 17, nil))
	require.Eventually(t, func() bool { return !isOpen(t, path) }, wait, 1e6)
	require.Eventually(t, func() bool { return len(f.keeper.Names()) == 1 }, wait, 1e6, "the object is still kept")
}

func itoa(n int64) string {
	return kept{size: n}.name()[len(objectPrefix+"0-0-") : len(kept{size: n}.name())-1]
}

// The last block is padded: O_DIRECT takes whole blocks.
func TestUnalignedEnd(t *testing.T) {
	img, l := bigLayer(t)
	f := newFake(t, Config{})
	p := f.mount(l, key)
	p.sources[0].data -= 100
	p.sources[0].size -= 100
	path := f.open(1, 2, key)
	n := int64(len(img.Data))
	f.send(readMsg(3, 2, uint64(n-8192), 8192))
	require.EqualValues(t, 3, f.done())
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Len(t, got, int(n))
	require.Equal(t, img.Data[n-8192:n-100], got[n-8192:n-100])
	require.Equal(t, make([]byte, 100), got[n-100:])
}

// A read that cannot be served is completed with nothing written: the kernel gives
// EIO, and the next read asks again.
func TestFailedReadIsCompleted(t *testing.T) {
	_, l := bigLayer(t)
	f := newFake(t, Config{})
	f.mount(l, key)
	path := f.open(1, 2, key)
	for i, why := range []error{errors.New("registry is down"), syscall.ENOSPC, context.Canceled} {
		l.Fail(why)
		f.send(readMsg(uint32(10+i), 2, 64<<10, 4096))
		require.EqualValues(t, 10+i, f.done())
		st, err := os.Stat(path)
		require.NoError(t, err)
		require.Zero(t, st.Size())
	}
	require.EqualValues(t, 3, f.d.Stats().Denied)
	f.send(readMsg(20, 2, 1<<40, 4096)) // behind the end
	require.EqualValues(t, 20, f.done())
	l.Fail(nil)
	f.send(readMsg(21, 2, 64<<10, 4096))
	require.EqualValues(t, 21, f.done())
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.NotZero(t, st.Size())
}

// An object that cannot take data, as on a full disk, fails its reader.
func TestObjectThatTakesNothing(t *testing.T) {
	_, l := bigLayer(t)
	f := newFake(t, Config{})
	f.mount(l, key)
	full, err := unix.Open("/dev/full", unix.O_WRONLY, 0)
	require.NoError(t, err)
	f.send(openMsg(1, 2, int32(full), volume, key))
	require.Regexp(t, "^copen 1,", f.command())
	f.send(readMsg(3, 2, 0, 4096))
	require.EqualValues(t, 3, f.done())
	require.EqualValues(t, 1, f.d.Stats().Denied)
}

func TestOpenIsRefused(t *testing.T) {
	_, l := bigLayer(t)
	f := newFake(t, Config{})
	f.mount(l, key)
	for name, m := range map[string]func(fd int32) []byte{
		"unknown cookie":   func(fd int32) []byte { return openMsg(9, 2, fd, volume, "other.abc.d") },
		"another's volume": func(fd int32) []byte { return openMsg(9, 2, fd, "erofs,nydus\x00", key) },
		"malformed":        func(fd int32) []byte { return openMsg(9, 2, fd, "no string", key) },
		"not kept": func(fd int32) []byte {
			f.keeper.Refuse(errors.New("store is full"))
			return openMsg(9, 2, fd, volume, key)
		},
	} {
		fd, path := f.object("o")
		f.send(m(fd))
		require.Equal(t, "copen 9,-5", f.command(), name)
		require.Eventually(t, func() bool { return !isOpen(t, path) }, wait, 1e6, name)
	}
	require.ErrorContains(t, f.d.refusal([]string{key}), "store is full")
	require.Equal(t, []string{DeviceName}, f.keeper.Names())
}

// Descriptors of objects are not handed to the programs that this process starts.
func TestObjectsCloseOnExec(t *testing.T) {
	_, l := bigLayer(t)
	f := newFake(t, Config{})
	f.mount(l, key)
	fd, _ := f.object("o")
	f.send(openMsg(1, 2, fd, volume, key))
	f.command()
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	require.NoError(t, err)
	require.Equal(t, unix.FD_CLOEXEC, flags)
}

func TestRequestsOfNobody(t *testing.T) {
	_, l := bigLayer(t)
	f := newFake(t, Config{})
	f.mount(l, key)
	f.send(readMsg(1, 99, 0, 4096))     // nothing can answer it
	f.send(msg(2, opClose, 99, nil))    // nothing to close
	f.send([]byte("no message at all")) // nor to refuse
	f.open(3, 2, key)                   // still served
}

// Shutdown finishes what was taken; what comes later is left to a successor.
func TestShutdownFinishesWhatWasTaken(t *testing.T) {
	_, l := bigLayer(t)
	f := newFake(t, Config{})
	f.mount(l, key)
	path := f.open(1, 2, key)
	release := l.Hold()
	f.send(readMsg(3, 2, 0, 4096))
	require.Eventually(t, func() bool { return f.d.Stats().Misses == 1 }, wait, 1e6)
	ended := make(chan error, 1)
	go func() { ended <- f.d.Shutdown(context.Background()) }()
	<-f.d.watchers.Stopping()
	release()
	require.NoError(t, <-ended)
	require.EqualValues(t, 3, f.done())
	require.Len(t, f.keeper.Names(), 2)
	require.True(t, isOpen(t, path), "the keeper's copy is gone")
	require.ErrorIs(t, f.d.Shutdown(context.Background()), ErrShutdown)
}

func TestShutdownInTime(t *testing.T) {
	_, l := bigLayer(t)
	f := newFake(t, Config{})
	f.mount(l, key)
	f.open(1, 2, key)
	defer l.Hold()()
	f.send(readMsg(3, 2, 0, 4096))
	require.Eventually(t, func() bool { return f.d.Stats().Misses == 1 }, wait, 1e6)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, f.d.Shutdown(ctx), context.Canceled)
	require.EqualValues(t, 3, f.done())
	require.EqualValues(t, 1, f.d.Stats().Denied)
}

// successor is a driver that inherits what f's driver left.
func (f *fake) successor(conf Config) {
	f.t.Helper()
	inherited, err := f.keeper.Inherited()
	require.NoError(f.t, err)
	// The driver says its first commands in New.
	conf.Keeper, conf.Dir, conf.Inherited = f.keeper, f.dir, inherited
	f.d, err = New(context.Background(), conf)
	require.NoError(f.t, err)
}

func TestSuccession(t *testing.T) {
	img, l := bigLayer(t)
	f := newFake(t, Config{})
	p := f.mount(l, key)
	path := f.open(4, 2, key)
	require.NoError(t, f.d.Shutdown(t.Context()))
	completed := f.d.complete
	f.successor(Config{})
	f.d.complete = completed
	require.Equal(t, "copen 4,"+itoa(p.sources[0].size), f.command(), "an OPEN that was not answered hangs for ever")
	require.Equal(t, "restore", f.command())

	f.send(readMsg(5, 2, 0, 4096)) // waits for the adoption
	m := &mount{d: f.d, plan: p}
	require.NoError(t, f.d.takeOver(m))
	require.EqualValues(t, 5, f.done())
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, img.Data[:4096], got[:4096])
	ids, err := f.d.Settle()
	require.NoError(t, err)
	require.Empty(t, ids)
}

func TestSettleFailsOrphans(t *testing.T) {
	_, l := bigLayer(t)
	f := newFake(t, Config{})
	f.mount(l, key)
	path := f.open(4, 2, key)
	require.NoError(t, f.d.Shutdown(t.Context()))
	completed := f.d.complete
	f.successor(Config{})
	f.d.complete = completed
	f.command()
	f.command()
	f.send(readMsg(5, 2, 0, 4096))
	ids, err := f.d.Settle()
	require.NoError(t, err)
	require.Equal(t, []string{"layer"}, ids)
	require.EqualValues(t, 5, f.done())
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.Zero(t, st.Size())
	// Its superblock goes, and with it what was kept.
	f.send(msg(6, opClose, 2, nil))
	require.Eventually(t, func() bool { return len(f.keeper.Names()) == 0 }, wait, 1e6)
	require.Zero(t, f.d.Stats().Served)
}

// Objects that were left without their device serve nothing.
func TestObjectsWithoutTheirDevice(t *testing.T) {
	k := &drivertest.Keeper{}
	null, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer null.Close()
	require.NoError(t, k.Put(kept{msg: 1, id: 2, size: 3, key: key}.name(), null))
	require.NoError(t, k.Put("fanotify-group", null))
	inherited, err := k.Inherited()
	require.NoError(t, err)
	d, err := New(t.Context(), Config{Keeper: k, Dir: t.TempDir(), Inherited: inherited})
	require.NoError(t, err)
	require.Equal(t, []string{"fanotify-group"}, k.Names())
	require.NoError(t, d.takeOver(&mount{d: d}), "a mount of a data file needs no device")
	require.ErrorIs(t, d.takeOver(&mount{d: d, plan: &plan{}}), ErrCacheLost)
	require.NoError(t, d.Shutdown(t.Context()))
	for _, f := range inherited["fanotify-group"] {
		require.NoError(t, f.Close(), "what is not ours was closed")
	}
	require.NoError(t, k.Close())
}

func TestNewNeeds(t *testing.T) {
	_, err := New(t.Context(), Config{Dir: "x"})
	require.ErrorContains(t, err, "keeper")
	d, err := New(t.Context(), Config{Keeper: &drivertest.Keeper{}})
	require.NoError(t, err)
	_, l := bigLayer(t)
	_, err = d.Mount(t.Context(), t.TempDir(), l)
	require.ErrorContains(t, err, "directory")
	require.NoError(t, d.Shutdown(t.Context()))
}

func TestAfterShutdown(t *testing.T) {
	_, l := bigLayer(t)
	d, err := New(t.Context(), Config{Keeper: &drivertest.Keeper{}, Dir: t.TempDir()})
	require.NoError(t, err)
	require.NoError(t, d.Shutdown(t.Context()))
	_, err = d.Mount(t.Context(), t.TempDir(), l)
	require.ErrorIs(t, err, ErrShutdown)
	_, err = d.Settle()
	require.ErrorIs(t, err, ErrShutdown)
	require.Zero(t, d.Stats().Served)
}

// Where files can be mounted, a complete layer needs neither device nor keeper.
func TestCompleteLayerIsMountedAsItIs(t *testing.T) {
	img := drivertest.NewImage(t, 1, true)
	l := newLayer(t, img)
	require.NoError(t, l.Fill(t.Context()))
	k := &drivertest.Keeper{}
	d, err := New(t.Context(), Config{Keeper: k, Dir: t.TempDir(), ReadAheadKB: 256})
	require.NoError(t, err)
	at := t.TempDir()
	m, err := d.Mount(t.Context(), at, l)
	require.NoError(t, err)
	require.Equal(t, at, m.Target())
	got, err := os.ReadFile(at + "/sparse")
	require.NoError(t, err)
	require.Equal(t, img.Files["sparse"], got)
	require.NoError(t, m.Release())
	require.NoError(t, d.Shutdown(t.Context()))

	d, err = New(t.Context(), Config{Keeper: k, Dir: t.TempDir()})
	require.NoError(t, err)
	m, err = d.Adopt(t.Context(), at, l)
	require.NoError(t, err)
	require.NoError(t, m.Close(t.Context()))
	<-m.Done()
	require.NoError(t, d.Shutdown(t.Context()))
	_, err = d.Adopt(t.Context(), at, l)
	require.ErrorContains(t, err, "nothing is mounted")
	require.Empty(t, k.Names())
}

var _ driver.Mount = (*mount)(nil)
