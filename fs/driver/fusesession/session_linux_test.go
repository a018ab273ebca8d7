package fusesession

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
	"github.com/lazyerofs/lazyerofs/tests/testenv/caches"
)

func TestServe(t *testing.T) {
	for what, change := range map[string]func(*MountConfig, *Config){
		"direct":    nil,
		"one loop":  func(_ *MountConfig, c *Config) { c.Loops, c.MaxInFlight = 1, 3 },
		"prompt":    func(_ *MountConfig, c *Config) { c.Prompt = func(uint32, uint64) bool { return true } },
		"one page":  func(_ *MountConfig, c *Config) { c.MaxRead = 4096 },
		"few reads": func(_ *MountConfig, c *Config) { c.MaxInFlight = 2 },
	} {
		t.Run(what, func(t *testing.T) {
			serveAndEnd(newRig(t, change))
		})
	}
}

// serveAndEnd reads everything, also at once, and unmounts.
func serveAndEnd(r *rig) {
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(r.target))
	require.NoError(r, err)
	require.Len(r, mounts, 1)
	require.Equal(r, "fuse.session", mounts[0].FSType)
	require.Equal(r, "test", mounts[0].Source)
	require.Contains(r, mounts[0].Options, "ro")
	require.Len(r, r.keeper.Names(), 2)
	r.readAll()
	errs := make([]<-chan error, 32)
	for i := range errs {
		errs[i] = r.reader(i % len(r.fs.names))
	}
	for _, c := range errs {
		require.NoError(r, r.result(c))
	}
	require.Positive(r, r.fs.reads.Load())
	r.end()
}

// TestHelper needs fusermount3, which a guest of tests/vm has not.
func TestHelper(t *testing.T) {
	serveAndEnd(newRig(t, func(m *MountConfig, _ *Config) { m.Helper = true }))
	fs, k := newFiles(t), &drivertest.Keeper{}
	refused := errors.New("store is full")
	k.Refuse(refused)
	target := t.TempDir()
	_, err := Mount(t.Context(), MountConfig{Target: target, Helper: true}, Config{Name: "other", Keeper: k, FS: fs})
	require.ErrorIs(t, err, refused)
	mounted, err := mountinfo.Mounted(target)
	require.NoError(t, err)
	require.False(t, mounted)
	k.Refuse(nil)
	_, err = Mount(t.Context(), MountConfig{Target: "/no/such/directory", Helper: true}, Config{Name: "other", Keeper: k, FS: fs})
	require.ErrorContains(t, err, "fusermount3")
	require.Empty(t, k.Names())
}

func TestResidentReads(t *testing.T) {
	fds := openFiles(t)
	release := caches.Hold(t)
	r := newRig(t, func(_ *MountConfig, c *Config) {
		f, _ := c.FS.(*files)
		f.back(t)
		c.FS = resident{f}
	})
	r.fds = fds + 1
	r.readAll()
	hits, _ := r.s.Counts()
	require.Positive(t, hits)
	require.Zero(t, r.fs.reads.Load())
	release()
	r.end()
}

func TestDetached(t *testing.T) {
	r := newRig(t, func(m *MountConfig, _ *Config) { m.Target = "" })
	root, err := r.s.Root()
	require.NoError(t, err)
	fd, err := unix.Openat(int(root.Fd()), r.fs.names[3], unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	require.NoError(t, root.Close())
	f := os.NewFile(uintptr(fd), "") // never in the poller: nobody made the kernel ask for POLL
	require.NoError(t, r.s.Detach())
	_, err = r.s.Root()
	require.ErrorIs(t, err, os.ErrClosed)
	got := make([]byte, len(r.fs.content[3]))
	_, err = f.ReadAt(got, 0)
	require.NoError(t, err)
	require.Equal(t, r.fs.content[3], got)
	require.NoError(t, f.Close())
	r.await(r.s.Done(), "the end of the connection")
	r.end()
}

func TestErrorsAreNotSticky(t *testing.T) {
	r := newRig(t, nil)
	for _, errno := range []syscall.Errno{unix.EIO, unix.ENOSPC} {
		r.fs.errno.Store(int32(errno))
		require.ErrorIs(t, r.read(3), errno)
	}
	r.fs.errno.Store(0)
	r.readAll()
	r.end()
}

func TestShutdownAndAdopt(t *testing.T) {
	for what, replay := range map[string]bool{"resend": false, "replay": true} {
		t.Run(what, func(t *testing.T) {
			r := newRig(t, nil)
			r.readAll()
			reads := r.fs.reads.Load()
			held := r.fs.hold()
			// In one request: before Linux 5.12 a file that ends with a page has the kernel
			// ask for the one behind its end too.
			before := r.reader(1)
			require.Eventually(t, func() bool { return r.fs.reads.Load() > reads && r.readsTaken() == 1 }, patience, time.Millisecond)
			down := make(chan error, 1)
			go func() { down <- r.s.Shutdown(t.Context()) }()
			held()
			require.NoError(t, r.result(before), "what was taken is finished")
			require.NoError(t, r.result(down))
			require.ErrorIs(t, r.s.Shutdown(t.Context()), ErrShutdown)
			require.Zero(t, r.unanswered())
			require.Len(t, r.keeper.Names(), 2)

			waiting := []<-chan error{r.reader(2), r.reader(3), r.reader(4)}
			conf := r.config()
			conf.ReplayJournal = replay
			r.adopt(conf)
			for _, c := range waiting {
				require.NoError(t, r.result(c))
			}
			r.readAll()
			r.end()
		})
	}
}

func TestShutdownThatCannotWait(t *testing.T) {
	r := newRig(t, nil)
	held := r.fs.hold()
	defer held()
	reader := r.reader(3)
	require.Eventually(t, func() bool { return r.readsTaken() > 0 }, patience, time.Millisecond)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, r.s.Shutdown(ctx), context.Canceled)
	held()
	r.adopt(r.config()) // read-ahead failed; the page itself is asked for again
	require.NoError(t, errors.Join(ignore(r.result(reader), unix.EIO)))
	r.readAll()
	r.end()
}

func ignore(err error, errno syscall.Errno) error {
	if errors.Is(err, errno) {
		return nil
	}
	return err
}

// A server dies by kill -9 with requests taken; the next one answers them.
func TestKilledServer(t *testing.T) {
	for what, replay := range map[string]bool{"resend": false, "replay": true} {
		t.Run(what, func(t *testing.T) {
			r := newRig(t, nil)
			r.readAll() // once: closing files needs no server any more
			require.NoError(t, r.s.Shutdown(t.Context()))
			for range 3 {
				child := r.startChild("hold")
				waiting := []<-chan error{r.reader(2), r.reader(3), r.reader(4)}
				require.Eventually(t, func() bool { return r.readsTaken() >= 3 }, patience, time.Millisecond)
				require.NoError(t, child.Process.Kill())
				require.Error(t, child.Wait())
				require.Positive(t, r.unanswered())

				conf := r.config()
				conf.ReplayJournal = replay
				r.adopt(conf)
				for _, c := range waiting {
					require.NoError(t, r.result(c))
				}
				r.readAll()
				require.NoError(t, r.s.Shutdown(t.Context()))
				require.Zero(t, r.unanswered())
			}
			r.adopt(r.config())
			r.end()
		})
	}
}

// Two deaths in a row: what the first took, the second took again.
func TestKilledTwice(t *testing.T) {
	for what, replay := range map[string]bool{"resend": false, "replay": true} {
		t.Run(what, func(t *testing.T) {
			r := newRig(t, nil)
			r.readAll() // once: closing files needs no server any more
			require.NoError(t, r.s.Shutdown(t.Context()))
			waiting := []<-chan error{r.reader(2), r.reader(3)}
			for range 2 {
				child := r.startChild("hold")
				require.Eventually(t, func() bool { return r.readsTaken() >= 2 }, patience, time.Millisecond)
				require.NoError(t, child.Process.Kill())
				require.Error(t, child.Wait())
			}
			conf := r.config()
			conf.ReplayJournal = replay
			r.adopt(conf)
			for _, c := range waiting {
				require.NoError(t, r.result(c))
			}
			r.end()
		})
	}
}

func TestAbort(t *testing.T) {
	r := newRig(t, nil)
	held := r.fs.hold()
	defer held()
	reader := r.reader(3)
	require.Eventually(t, func() bool { return r.readsTaken() > 0 }, patience, time.Millisecond)
	require.NoError(t, r.s.Abort())
	require.Error(t, r.result(reader))
	r.await(r.s.Done(), "the end of the connection")
	require.Error(t, r.read(3))
	r.end()
}

func TestUnmountUnderReader(t *testing.T) {
	r := newRig(t, nil)
	f, err := os.Open(filepath.Join(r.target, r.fs.names[4]))
	require.NoError(t, err)
	require.NoError(t, r.s.Unmount())
	got := make([]byte, len(r.fs.content[4]))
	_, err = f.ReadAt(got, 0)
	require.NoError(t, err)
	require.Equal(t, r.fs.content[4], got)
	select {
	case <-r.s.Done():
		require.Fail(t, "ended under a reader")
	default:
	}
	require.NoError(t, f.Close())
	r.await(r.s.Done(), "the end of the connection")
	require.ErrorIs(t, r.s.Unmount(), unix.EINVAL)
	require.Empty(t, r.keeper.Names())
}

func TestMountRefusals(t *testing.T) {
	r := newRig(t, nil)
	refused := errors.New("store is full")
	for what, c := range map[string]struct {
		mc   MountConfig
		conf func(*Config)
	}{
		"no keeper": {MountConfig{Target: t.TempDir()}, func(c *Config) { c.Keeper = nil }},
		"no name":   {MountConfig{Target: t.TempDir()}, func(c *Config) { c.Name = "" }},
		"no limit":  {MountConfig{Target: t.TempDir()}, func(c *Config) { c.MaxRead = MaxMaxRead + 1 }},
		"no target": {MountConfig{Target: "/no/such/directory"}, nil},
	} {
		t.Run(what, func(t *testing.T) {
			conf := Config{Name: "other", Keeper: r.keeper, FS: newFiles(t)}
			if c.conf != nil {
				c.conf(&conf)
			}
			fds := openFiles(t)
			_, err := Mount(t.Context(), c.mc, conf)
			require.Error(t, err)
			require.Equal(t, fds, openFiles(t))
			require.Len(t, r.keeper.Names(), 2)
		})
	}
	r.keeper.Refuse(refused)
	target := t.TempDir()
	_, err := Mount(t.Context(), MountConfig{Target: target}, Config{Name: "other", Keeper: r.keeper, FS: newFiles(t)})
	require.ErrorIs(t, err, refused)
	mounted, err := mountinfo.Mounted(target)
	require.NoError(t, err)
	require.False(t, mounted)
	r.end()
}

func TestAdoptRefusals(t *testing.T) {
	r := newRig(t, nil)
	_, err := Adopt(t.Context(), r.target, r.config(), nil)
	require.ErrorIs(t, err, os.ErrNotExist)

	inherited, err := r.keeper.Inherited()
	require.NoError(t, err)
	fresh, err := newJournal(4) // its maker died before FUSE_INIT
	require.NoError(t, err)
	require.NoError(t, inherited[StateName(name)][0].Close())
	inherited[StateName(name)][0] = fresh.file
	_, err = Adopt(t.Context(), r.target, r.config(), inherited)
	require.ErrorIs(t, err, ErrUnborn)
	require.Empty(t, inherited)

	inherited, err = r.keeper.Inherited()
	require.NoError(t, err)
	require.NoError(t, inherited[StateName(name)][0].Close())
	other, err := os.Create(filepath.Join(t.TempDir(), "state"))
	require.NoError(t, err)
	inherited[StateName(name)][0] = other
	_, err = Adopt(t.Context(), r.target, r.config(), inherited)
	require.ErrorIs(t, err, errState)
	r.readAll() // by the one that serves it
	_ = fresh.close()
	r.end()
}

func TestDiscard(t *testing.T) {
	r := newRig(t, nil)
	require.NoError(t, r.s.Shutdown(t.Context()))
	inherited, err := r.keeper.Inherited()
	require.NoError(t, err)
	require.NoError(t, Discard(r.config(), inherited))
	require.Empty(t, r.keeper.Names())
	require.ErrorIs(t, r.read(3), unix.ENOTCONN)
	require.NoError(t, r.s.Unmount())
}

func TestStoreCache(t *testing.T) {
	r := newRig(t, nil)
	f, err := os.Open(filepath.Join(r.target, r.fs.names[3]))
	require.NoError(t, err)
	release := caches.Hold(t)
	require.NoError(t, r.s.StoreCache(5, 0, r.fs.content[3][:4096*8]))
	got := make([]byte, 4096*8)
	_, err = f.ReadAt(got, 0)
	require.NoError(t, err)
	require.Equal(t, r.fs.content[3][:4096*8], got)
	require.Zero(t, r.fs.reads.Load())
	release()
	require.ErrorIs(t, r.s.StoreCache(4711, 0, got), unix.ENOENT)
	require.NoError(t, f.Close())
	r.end()
}

// Readers, deaths and successors at once.
func TestReadersThroughManyServers(t *testing.T) {
	r := newRig(t, nil)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	errs := make(chan error, 8)
	for i := range cap(errs) {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := r.read(2 + i%3); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	for i := range 30 {
		require.NoError(t, r.s.Shutdown(t.Context()))
		conf := r.config()
		conf.ReplayJournal = i%2 == 0
		r.adopt(conf)
	}
	close(stop)
	wg.Wait()
	require.Empty(t, errs)
	r.end()
}
