package cachefiles

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
)

// fake is the kernel's side of the protocol, where the real one does what is
// asked and no more: the device is one end of a socket pair, objects are files.
type fake struct {
	t      *testing.T
	fd     int
	dir    string
	keeper *drivertest.Keeper
	d      *Driver

	completed chan uint32 // READs
}

const wait = 10 * time.Second

// newFake starts a driver on a device of ours.
func newFake(t *testing.T, conf Config) *fake {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	require.NoError(t, err)
	f := &fake{t: t, fd: fds[1], dir: t.TempDir(), keeper: &drivertest.Keeper{}, completed: make(chan uint32, 16)}
	conf.Keeper, conf.Dir = f.keeper, f.dir
	f.d, err = New(context.Background(), conf)
	require.NoError(t, err)
	f.d.complete = func(_ *os.File, msg uint32) error {
		f.completed <- msg
		return nil
	}
	require.NoError(t, f.d.start(&device{fd: fds[0]}))
	t.Cleanup(func() {
		if err := f.d.Shutdown(context.Background()); err != nil {
			require.ErrorIs(t, err, ErrShutdown)
		}
		require.NoError(t, unix.Close(f.fd))
		require.NoError(t, f.keeper.Close())
	})
	return f
}

// send is a request of the kernel.
func (f *fake) send(b []byte) {
	f.t.Helper()
	_, err := unix.Write(f.fd, b)
	require.NoError(f.t, err)
}

// command is the next command that the driver says.
func (f *fake) command() string {
	f.t.Helper()
	fds := []unix.PollFd{{Fd: int32(f.fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, int(wait.Milliseconds()))
	for err == unix.EINTR { // the runtime's own signals; no poll(2) is restarted, see signal(7)
		n, err = unix.Poll(fds, int(wait.Milliseconds()))
	}
	require.NoError(f.t, err)
	require.Equal(f.t, 1, n, "the driver says nothing")
	b := make([]byte, 256)
	n, err = unix.Read(f.fd, b)
	require.NoError(f.t, err)
	return string(b[:n])
}

// done is the next READ that was completed.
func (f *fake) done() uint32 {
	f.t.Helper()
	select {
	case id := <-f.completed:
		return id
	case <-time.After(wait):
		require.FailNow(f.t, "a read hangs")
		return 0
	}
}

// object is a descriptor as the kernel makes one, and the file that shows what is
// written to it.
func (f *fake) object(name string) (fd int32, path string) {
	f.t.Helper()
	path = filepath.Join(f.t.TempDir(), name)
	n, err := unix.Open(path, unix.O_CREAT|unix.O_RDWR, 0o600)
	require.NoError(f.t, err)
	return int32(n), path
}

// mount registers a layer as Mount does, without a mount.
func (f *fake) mount(l driver.Layer, key string) *plan {
	f.t.Helper()
	size, err := sizeOf(l.Data())
	require.NoError(f.t, err)
	p := &plan{}
	p.add(key, &source{layer: l, data: size, size: size})
	require.NoError(f.t, f.d.protect(p))
	return p
}

// open opens an object and checks the answer.
func (f *fake) open(msg, id uint32, key string) (path string) {
	f.t.Helper()
	fd, path := f.object(key)
	f.send(openMsg(msg, id, fd, volume, key))
	require.Regexp(f.t, `^copen \d+,\d+$`, f.command())
	return path
}

const (
	volume = "erofs," + domain + "\x00"
	key    = "layer.abc.d"
)

// isOpen reports whether a descriptor of this process refers to path.
func isOpen(t *testing.T, path string) bool {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && to == path {
			return true
		}
	}
	return false
}
