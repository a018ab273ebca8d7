package crash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
	"github.com/lazyerofs/lazyerofs/fs/fdstore"
)

// untouched is the file that readers leave alone, so that the layer stays
// incomplete and its mark in place.
const untouched = "dir0/file9"

// rig is a supervised daemon with one mounted layer.
type rig struct {
	*testing.T
	img        *drivertest.Image
	target     string
	outer      *net.UnixConn
	supervisor *exec.Cmd
	daemon     int // process id
}

func newRig(t *testing.T) *rig {
	dir := t.TempDir()
	r := &rig{T: t, img: drivertest.NewImage(t, seed, false), target: filepath.Join(dir, "mnt")}
	require.NoError(t, os.Mkdir(r.target, 0o755))
	addr := &net.UnixAddr{Name: filepath.Join(dir, "outer"), Net: "unixgram"}
	var err error
	r.outer, err = net.ListenUnixgram("unixgram", addr)
	require.NoError(t, err)
	self, err := os.Executable()
	require.NoError(t, err)
	r.supervisor = exec.CommandContext(context.Background(), self)
	r.supervisor.Env = append(os.Environ(), roleEnv+"=supervisor", dirEnv+"="+dir, "NOTIFY_SOCKET="+addr.Name)
	r.supervisor.Stderr = os.Stderr
	require.NoError(t, r.supervisor.Start())
	t.Cleanup(r.stop)
	r.up("mounted")
	return r
}

// stop ends whatever a failed test left: without its keeper no reader waits.
func (r *rig) stop() {
	_ = unix.Unmount(r.target, unix.MNT_DETACH)
	if r.supervisor.ProcessState == nil {
		_ = r.supervisor.Process.Kill()
		_ = r.supervisor.Wait()
		if r.daemon != 0 {
			_ = unix.Kill(r.daemon, unix.SIGKILL)
		}
	}
	require.NoError(r, r.outer.Close())
}

// next waits for a notification whose text holds what.
func (r *rig) next(what string) fdstore.Message {
	r.Helper()
	require.NoError(r, r.outer.SetReadDeadline(time.Now().Add(30*time.Second)))
	buf := make([]byte, fdstore.MaxMessage)
	for {
		n, err := r.outer.Read(buf)
		require.NoError(r, err, "waiting for %q", what)
		if strings.Contains(string(buf[:n]), what) {
			m, err := fdstore.Parse(buf[:n])
			require.NoError(r, err)
			return m
		}
	}
}

// up waits for the next daemon to be ready.
func (r *rig) up(want string) {
	r.Helper()
	how, pid, err := fields(r.next("READY=1").Status)
	require.NoError(r, err)
	require.Equal(r, want, how)
	require.NotEqual(r, r.daemon, pid)
	r.daemon = pid
}

func (r *rig) signal(sig os.Signal) { require.NoError(r, r.supervisor.Process.Signal(sig)) }

// names are the paths that readers read.
func (r *rig) names() []string {
	var list []string
	for name := range r.img.Files {
		if name != untouched {
			list = append(list, name)
		}
	}
	return list
}

// read reads one file past the page cache and compares it.
func (r *rig) read(name string) error {
	f, err := os.Open(filepath.Join(r.target, name))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return err
	}
	got := make([]byte, len(r.img.Files[name]))
	if _, err := f.ReadAt(got, 0); err != nil && len(got) > 0 {
		return fmt.Errorf("%s: %w", name, err)
	}
	if !bytes.Equal(got, r.img.Files[name]) {
		return fmt.Errorf("%s differs", name)
	}
	return nil
}

// load reads random files until the returned function is called, which tells
// how many reads there were and how they failed.
func (r *rig) load() func() (int64, error) {
	var count atomic.Int64
	quit := make(chan struct{})
	var group errgroup.Group
	names := r.names()
	for range 4 {
		group.Go(func() error {
			var errs []error
			for {
				select {
				case <-quit:
					return errors.Join(errs...)
				default:
				}
				if err := r.read(names[rand.IntN(len(names))]); err != nil {
					errs = append(errs, err)
				}
				count.Add(1)
			}
		})
	}
	return func() (int64, error) {
		close(quit)
		return count.Load(), group.Wait()
	}
}

// A daemon that is stopped on purpose and replaced, again and again, under
// readers of an incomplete layer: every read has the right bytes.
func TestReplacedUnderReaders(t *testing.T) {
	r := newRig(t)
	end := r.load()
	for range 15 {
		r.signal(unix.SIGHUP)
		r.up("adopted")
	}
	n, err := end()
	require.NoError(t, err)
	require.Positive(t, n)
	r.finish()
}

// kill -9 with no read in flight: the next daemon goes on.
func TestKilledWhileIdle(t *testing.T) {
	r := newRig(t)
	for _, name := range []string{"dir2/file8", "sparse", "small/100"} {
		require.NoError(t, unix.Kill(r.daemon, unix.SIGKILL))
		read := make(chan error, 1)
		go func() { read <- r.read(name) }() // perhaps before, perhaps after the next one is there
		r.up("adopted")
		require.NoError(t, <-read)
	}
	r.finish()
}

// Told to stop while the layer is incomplete, the supervisor stays: readers
// wait and never see zeros.
func TestStoppedWithAnIncompleteLayer(t *testing.T) {
	r := newRig(t)
	require.NoError(t, r.read("sparse"))
	r.signal(unix.SIGTERM)
	r.next("stored descriptors guard mounted layers")
	require.ErrorIs(t, unix.Kill(r.daemon, 0), unix.ESRCH)

	reads := make(chan error, 3)
	for _, name := range []string{"dir2/file8", "dir1/file7", "small/199"} {
		go func() { reads <- r.read(name) }()
	}
	killed := exec.CommandContext(t.Context(), "cat", filepath.Join(r.target, "dir1/file4"))
	require.NoError(t, killed.Start())
	require.NoError(t, killed.Process.Kill())
	require.Error(t, killed.Wait(), "a waiting reader can be killed")

	r.signal(unix.SIGUSR2)
	r.up("adopted")
	for range cap(reads) {
		require.NoError(t, <-reads)
	}
	r.finish()
}

// finish completes the layer. Then nobody is needed: the supervisor exits when
// told, and the mount goes on without any process.
func (r *rig) finish() {
	r.Helper()
	require.NoError(r, unix.Kill(r.daemon, unix.SIGUSR1))
	r.next("STATUS=complete")
	r.signal(unix.SIGTERM)
	require.NoError(r, r.supervisor.Wait())
	for _, name := range append(r.names(), untouched) {
		require.NoError(r, r.read(name))
	}
	require.NoError(r, unix.Unmount(r.target, 0))
}
