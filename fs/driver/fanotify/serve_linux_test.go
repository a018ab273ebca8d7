package fanotify

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
	"github.com/lazyerofs/lazyerofs/fs/driver/lifetime"
)

const (
	patience = 30 * time.Second
	bigFile  = "dir0/file9"
)

// rig is a driver with one mounted layer.
type rig struct {
	*testing.T
	keeper *drivertest.Keeper
	img    *drivertest.Image
	d      *Driver
	layer  *drivertest.Layer
	target string
	m      driver.Mount

	mu          sync.Mutex
	quarantined []string
	why         error
}

func newRig(t *testing.T) *rig {
	r := &rig{T: t, keeper: &drivertest.Keeper{}, img: drivertest.NewImage(t, 2, false), target: t.TempDir()}
	r.d = newDriver(t, r.keeper, r.config(nil))
	r.layer = drivertest.NewLayer(t, t.TempDir(), "layer", r.img)
	var err error
	r.m, err = r.d.Mount(t.Context(), r.target, r.layer)
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = unix.Unmount(r.target, unix.MNT_DETACH)
		_ = r.d.Shutdown(context.Background())
		require.NoError(t, r.keeper.Close())
		_ = r.layer.Close()
	})
	return r
}

func (r *rig) config(inherited map[string][]*os.File) Config {
	return Config{Inherited: inherited, Quarantine: func(ids []string, why error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.quarantined, r.why = append(r.quarantined, ids...), why
	}}
}

// restart shuts the driver down and makes a successor.
func (r *rig) restart() map[string][]*os.File {
	require.NoError(r, r.d.Shutdown(r.Context()))
	return r.succeed()
}

// succeed makes a successor from what is kept.
func (r *rig) succeed() map[string][]*os.File {
	inherited, err := r.keeper.Inherited()
	require.NoError(r, err)
	r.d = newDriver(r, r.keeper, r.config(inherited))
	return inherited
}

// adopt makes the successor serve the layer.
func (r *rig) adopt(inherited map[string][]*os.File) {
	r.layer = r.layer.Successor(inherited[WriterName("layer")][0])
	var err error
	r.m, err = r.d.Adopt(r.Context(), r.target, r.layer)
	require.NoError(r, err)
}

// overflow makes the driver believe that the kernel lost events.
func (r *rig) overflow() {
	l := &loop{d: r.d}
	require.True(r, l.arm())
	l.dispatch(copy(l.slot.event(), raw(unix.FAN_Q_OVERFLOW, noFD)))
}

func (r *rig) read(name string) error {
	got, err := os.ReadFile(filepath.Join(r.target, name))
	if err != nil {
		return err
	}
	if string(got) != string(r.img.Files[name]) {
		return errors.New(name + " differs")
	}
	return nil
}

func (r *rig) readLater(name string) <-chan error {
	done := make(chan error, 1)
	go func() { done <- r.read(name) }()
	return done
}

func (r *rig) await(c <-chan error) error {
	r.Helper()
	select {
	case err := <-c:
		return err
	case <-time.After(patience):
		require.FailNow(r, "waited too long")
		return nil
	}
}

// markedLayer is a layer that is not mounted, marked in a group that no loop
// reads.
func markedLayer(t *testing.T) (*drivertest.Layer, *group) {
	layer := drivertest.NewLayer(t, t.TempDir(), "layer", drivertest.NewImage(t, 2, false))
	g, err := newGroup()
	require.NoError(t, err)
	require.NoError(t, g.mark(layer.Data()))
	t.Cleanup(func() { require.NoError(t, errors.Join(g.close(), layer.Close())) })
	return layer, g
}

func TestHotPathAllocatesNothing(t *testing.T) {
	layer, g := markedLayer(t)
	require.NoError(t, layer.Fill(t.Context()))
	k, err := keyOf(layer.Data())
	require.NoError(t, err)
	j, err := newJournal(1)
	require.NoError(t, err)
	d := &Driver{group: g, journal: j, watchers: lifetime.NewWatchers()}
	d.table.Store(&map[key]*guard{k: {key: k, id: "layer", layer: layer}})

	// Every read(2) of the marked file itself is an event.
	path := layer.Data().Name()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	ask, asked := make(chan struct{}), make(chan struct{})
	var readErr error
	go func() {
		defer close(asked)
		buf := make([]byte, 8192)
		for range ask {
			if _, err := unix.Pread(fd, buf, 4096); err != nil {
				readErr = err
			}
			asked <- struct{}{}
		}
	}()
	l := &loop{d: d}
	require.True(t, l.arm())
	fds := []unix.PollFd{{Fd: int32(g.fd), Events: unix.POLLIN}}
	const runs = 200
	allocs := testing.AllocsPerRun(runs, func() {
		ask <- struct{}{}
		if err := await(fds); err == nil {
			l.take()
		}
		<-asked
	})
	close(ask)
	<-asked
	require.NoError(t, readErr)
	require.NoError(t, unix.Close(fd))
	require.Zero(t, allocs)
	require.EqualValues(t, runs+1, d.hits.Load()) // AllocsPerRun warms up once
	require.Zero(t, j.taken())
	require.NoError(t, j.close())
}

func TestUnknownFileIsDenied(t *testing.T) {
	r := newRig(t)
	f, err := os.Create(filepath.Join(t.TempDir(), "stranger"))
	require.NoError(t, err)
	defer func() { require.NoError(t, f.Close()) }()
	require.NoError(t, f.Truncate(1<<20))
	require.NoError(t, r.d.group.mark(f))
	_, err = os.ReadFile(f.Name())
	require.ErrorIs(t, err, syscall.EIO)
	require.NoError(t, r.d.group.unmark(f))
	require.NoError(t, r.d.group.unmark(f), "unmarking what is not marked")
	_, err = os.ReadFile(f.Name())
	require.NoError(t, err)
	require.Positive(t, r.d.Stats().Denied)
}

// A marked data file is cut by nobody: truncation comes as an event of no bytes.
func TestTruncationIsDenied(t *testing.T) {
	r := newRig(t)
	require.ErrorIs(t, os.Truncate(r.layer.Data().Name(), 0), syscall.EIO)
	require.NoError(t, r.read(bigFile))
}

func TestOverflowQuarantines(t *testing.T) {
	r := newRig(t)
	require.NoError(t, r.read("small/000"))
	require.NoError(t, r.layer.Ensure(t.Context(), 0, 1))
	r.overflow()
	require.Equal(t, []string{"layer"}, r.quarantined)
	require.ErrorIs(t, r.why, errSuspect)
	require.ErrorIs(t, r.read(bigFile), syscall.EIO)

	require.NoError(t, r.m.Close(t.Context()))
	<-r.m.Done()
	var err error
	r.m, err = r.d.Mount(t.Context(), r.target, r.layer)
	require.NoError(t, err)
	require.NoError(t, r.read(bigFile), "a fresh mount is trusted again")
}

func TestAnswerNeverLeavesAReaderBlocked(t *testing.T) {
	layer, g := markedLayer(t)
	file, err := os.Open(layer.Data().Name())
	require.NoError(t, err)
	defer func() { require.NoError(t, file.Close()) }()
	for errno, want := range map[syscall.Errno]error{
		0: nil, syscall.EIO: syscall.EIO, syscall.ENOSPC: syscall.ENOSPC,
		syscall.ETIMEDOUT: syscall.EPERM, // not in the kernel's list
	} {
		done := make(chan error, 1)
		go func() {
			_, err := file.ReadAt(make([]byte, 10), 0)
			done <- err
		}()
		require.NoError(t, await([]unix.PollFd{{Fd: int32(g.fd), Events: unix.POLLIN}}))
		buf := make([]byte, eventLen)
		n, err := g.read(buf)
		require.NoError(t, err)
		ev, _, err := next(buf[:n])
		require.NoError(t, err)
		require.NoError(t, g.settle(new(unix.FanotifyResponse), new(slot), ev.fd, errno))
		require.ErrorIs(t, <-done, want)
	}
}

func TestKilledReader(t *testing.T) {
	r := newRig(t)
	release := r.layer.Hold()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cmd := exec.CommandContext(ctx, "cat", filepath.Join(r.target, bigFile))
	require.NoError(t, cmd.Start())
	require.Eventually(t, func() bool { return r.waits() > 0 }, patience, time.Millisecond)
	cancel()
	require.Error(t, cmd.Wait()) // it can be killed while it waits
	release()
	require.NoError(t, r.read(bigFile))
	require.Zero(t, r.d.Stats().Denied)
}

func TestShutdownFinishesWhatWasTaken(t *testing.T) {
	r := newRig(t)
	release := r.layer.Hold()
	reader := r.readLater("dir2/file5") // one chunk or two
	require.Eventually(t, func() bool { return r.waits() > 0 }, patience, time.Millisecond)
	down := make(chan error, 1)
	go func() { down <- r.d.Shutdown(context.Background()) }()
	<-r.d.watchers.Stopping()
	release()
	require.NoError(t, r.await(down))
	inherited, err := r.keeper.Inherited()
	require.NoError(t, err)
	r.d = newDriver(t, r.keeper, r.config(inherited))
	_, err = r.d.Adopt(t.Context(), r.target, r.layer.Successor(inherited[WriterName("layer")][0]))
	require.NoError(t, err)
	require.NoError(t, r.await(reader))
}

// What Shutdown has no time to finish is left to the successor.
func TestShutdownInTime(t *testing.T) {
	r := newRig(t)
	release := r.layer.Hold()
	reader := r.readLater(bigFile)
	require.Eventually(t, func() bool { return r.waits() > 0 }, patience, time.Millisecond)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, r.d.Shutdown(ctx), context.Canceled)
	release()
	r.adopt(r.succeed())
	require.NoError(t, r.await(reader))
	require.Zero(t, r.d.Stats().Denied)
}
