package fuseblock

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
	"github.com/lazyerofs/lazyerofs/fs/driver/fusesession"
)

const patience = 30 * time.Second

const bigFile = "dir0/file9"

// rig is one incomplete layer that is mounted.
type rig struct {
	testing.TB
	keeper *drivertest.Keeper
	d      *Driver
	img    *drivertest.Image
	layer  *drivertest.Layer
	target string
	m      driver.Mount
}

func newRig(t *testing.T, conf Config) *rig {
	r := &rig{TB: t, keeper: &drivertest.Keeper{}, img: drivertest.NewImage(t, 1, false), target: t.TempDir()}
	r.d = newDriver(t, r.keeper, conf)
	r.layer = drivertest.NewLayer(t, t.TempDir(), "layer", r.img)
	var err error
	r.m, err = r.d.Mount(t.Context(), r.target, r.layer)
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = unix.Unmount(r.target, unix.MNT_DETACH)
		_ = r.d.Shutdown(context.Background())
		_ = r.keeper.Close()
		_ = r.layer.Close()
	})
	return r
}

// restart shuts the driver down and makes a successor.
func (r *rig) restart() {
	require.NoError(r, r.d.Shutdown(r.Context()))
	require.NoError(r, r.m.Release())
	inherited, err := r.keeper.Inherited()
	require.NoError(r, err)
	r.d = newDriver(r, r.keeper, Config{Inherited: inherited})
}

func (r *rig) read(name string) error {
	got, err := os.ReadFile(filepath.Join(r.target, name))
	if err == nil {
		require.Equal(r, r.img.Files[name], got)
	}
	return err
}

func (r *rig) await(c <-chan struct{}) {
	r.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		require.FailNow(r, "waited too long")
	}
}

func TestNames(t *testing.T) {
	session := SessionName("sha256-abc", "/mnt/1")
	require.NotEqual(t, session, SessionName("sha256-abc", "/mnt/2"))
	name := fusesession.NewName(session)
	id, ok := layerOf(name)
	require.True(t, ok)
	require.Equal(t, "sha256-abc", id)
	for _, other := range []string{
		"", "fuseblock-", "fuseblock-0123456789abcdef", session, name[:len(name)-1] + "g", "x" + name,
		"fuseblock--0123456789abcdef-0123456789abcdef", fusesession.StateName(name),
	} {
		_, ok := layerOf(other)
		require.False(t, ok, other)
	}
}

func TestSettle(t *testing.T) {
	r := newRig(t, Config{})
	r.restart()
	require.Equal(t, 1, r.d.Stats().Served)
	reader := make(chan error, 1)
	go func() {
		_, err := os.ReadFile(filepath.Join(r.target, bigFile))
		reader <- err
	}()
	ids, err := r.d.Settle()
	require.NoError(t, err)
	require.Equal(t, []string{"layer"}, ids)
	require.ErrorIs(t, <-reader, syscall.EIO)
	require.Len(t, r.keeper.Names(), 2, "still mounted, still kept")
	ids, err = r.d.Settle()
	require.NoError(t, err)
	require.Empty(t, ids)

	// A late adoption is an adoption.
	r.m, err = r.d.Adopt(t.Context(), r.target, r.layer)
	require.NoError(t, err)
	require.NoError(t, r.read(bigFile))
	require.NoError(t, r.m.Close(t.Context()))
	r.await(r.m.Done())
	require.Empty(t, r.keeper.Names())
}

func TestOrphansAreBuried(t *testing.T) {
	r := newRig(t, Config{})
	r.restart()
	_, err := r.d.Settle()
	require.NoError(t, err)
	require.ErrorIs(t, r.read(bigFile), syscall.EIO)
	require.NoError(t, unix.Unmount(r.target, 0))
	require.Eventually(t, func() bool { return len(r.keeper.Names()) == 0 && r.d.Stats().Served == 0 }, patience, time.Millisecond)
}

func TestConnectionsWaitForASecondSuccessor(t *testing.T) {
	r := newRig(t, Config{})
	r.restart()
	require.NoError(t, r.d.Shutdown(t.Context())) // it adopted nothing
	inherited, err := r.keeper.Inherited()
	require.NoError(t, err)
	r.d = newDriver(t, r.keeper, Config{Inherited: inherited})
	r.m, err = r.d.Adopt(t.Context(), r.target, r.layer)
	require.NoError(t, err)
	require.NoError(t, r.read(bigFile))
}

func TestAdoptRefusals(t *testing.T) {
	r := newRig(t, Config{})
	_, err := r.d.Adopt(t.Context(), t.TempDir(), r.layer)
	require.Error(t, err, "nothing is mounted there")
	_, err = r.d.Adopt(t.Context(), r.target, r.layer)
	require.ErrorIs(t, err, ErrNotKept, "it is served already")
}

func TestAdoptOfACompleteLayer(t *testing.T) {
	r := newRig(t, Config{})
	target := t.TempDir()
	l := drivertest.NewLayer(t, t.TempDir(), "complete", r.img)
	require.NoError(t, l.Fill(t.Context()))
	_, err := r.d.Mount(t.Context(), target, l)
	require.NoError(t, err)
	r.restart()
	m, err := r.d.Adopt(t.Context(), target, l)
	require.NoError(t, err)
	require.NoError(t, m.Close(t.Context()))
	r.await(m.Done())
	require.NoError(t, l.Close())
}

func TestAfterShutdown(t *testing.T) {
	r := newRig(t, Config{})
	require.NoError(t, r.read("sparse"))
	hits := r.d.Stats()
	require.NoError(t, r.d.Shutdown(t.Context()))
	_, err := r.d.Mount(t.Context(), t.TempDir(), r.layer)
	require.ErrorIs(t, err, ErrShutdown)
	_, err = r.d.Adopt(t.Context(), r.target, r.layer)
	require.ErrorIs(t, err, ErrShutdown)
	_, err = r.d.Settle()
	require.ErrorIs(t, err, ErrShutdown)
	require.ErrorIs(t, r.m.Close(t.Context()), ErrShutdown)
	require.ErrorIs(t, r.d.Shutdown(t.Context()), ErrShutdown)
	require.NoError(t, r.m.Release())
	require.Equal(t, hits.Misses, r.d.Stats().Misses)
	require.Zero(t, r.d.Stats().Served)
}

func TestShutdownInTime(t *testing.T) {
	r := newRig(t, Config{})
	release := r.layer.Hold()
	defer release()
	reader := make(chan error, 1)
	go func() {
		_, err := os.ReadFile(filepath.Join(r.target, bigFile))
		reader <- err
	}()
	r.await(r.layer.Held())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, r.d.Shutdown(ctx), context.Canceled)
	release()
	require.NoError(t, r.m.Release())
	inherited, err := r.keeper.Inherited()
	require.NoError(t, err)
	r.d = newDriver(t, r.keeper, Config{Inherited: inherited})
	r.m, err = r.d.Adopt(t.Context(), r.target, r.layer)
	require.NoError(t, err)
	if err := <-reader; err != nil {
		require.ErrorIs(t, err, syscall.EIO)
	}
	require.NoError(t, r.read(bigFile))
}

// Without a keeper and without a server reads fail, and show no zeros.
func TestFailsClosed(t *testing.T) {
	r := newRig(t, Config{})
	require.NoError(t, r.d.Shutdown(t.Context()))
	require.NoError(t, r.keeper.Close())
	require.ErrorIs(t, r.read(bigFile), syscall.EIO)
}

func TestStats(t *testing.T) {
	r := newRig(t, Config{})
	require.NoError(t, r.layer.Fill(t.Context()))
	require.Equal(t, 1, r.d.Stats().Served)
	before := r.d.Stats()
	require.NoError(t, r.read(bigFile))
	after := r.d.Stats()
	require.Greater(t, after.Hits, before.Hits)
	require.Equal(t, before.Misses, after.Misses)
	require.NoError(t, r.m.Close(t.Context()))
	r.await(r.m.Done())
	end := r.d.Stats()
	require.GreaterOrEqual(t, end.Hits, after.Hits, "the last is counted after it was answered")
	require.Equal(t, driver.Stats{Hits: end.Hits, Misses: before.Misses}, end)
}

// Nothing of FUSE is to be seen, and the EROFS mount says what is below it.
func TestMountInfo(t *testing.T) {
	r := newRig(t, Config{ReadAheadKB: 512})
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("fuse.fuseblock"))
	require.NoError(t, err)
	require.Empty(t, mounts)
	mounts, err = mountinfo.GetMounts(mountinfo.SingleEntryFilter(r.target))
	require.NoError(t, err)
	require.Equal(t, "erofs", mounts[0].FSType)
	require.NotContains(t, mounts[0].Options, "nosuid")
}

func TestProbe(t *testing.T) {
	for _, conf := range []Config{{}, {LoopDevices: true}, {DirectIO: true}} {
		d := newDriver(t, &drivertest.Keeper{}, conf)
		require.Equal(t, "fuseblock", d.Name())
		require.NoError(t, d.Probe("/no/such/directory"), "it needs none")
		require.NoError(t, d.Shutdown(t.Context()))
	}
}

func TestChoose(t *testing.T) {
	file, device := errors.New("from a file"), errors.New("from a loop device")
	for _, c := range []struct {
		always       bool
		file, device error
		loop         bool
		err          error
	}{
		{false, nil, device, false, nil},
		{false, file, nil, true, nil},
		{false, file, device, false, file},
		{true, nil, nil, true, nil},
		{true, nil, device, false, device},
	} {
		loop, err := choose(c.always, func(loop bool) error {
			if loop {
				return c.device
			}
			return c.file
		})
		require.Equal(t, c.loop, loop, "%v", c)
		require.Equal(t, c.err, err, "%v", c)
	}
}

func TestNewNeedsAKeeper(t *testing.T) {
	_, err := New(t.Context(), Config{})
	require.ErrorContains(t, err, "keeper")
}

func TestHotPathAllocatesNothing(t *testing.T) {
	r := newRig(t, Config{})
	require.NoError(t, r.layer.Fill(t.Context()))
	f := newFile(r.d, "x")
	require.NoError(t, f.show(r.layer))
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if _, _, n, ok := f.Resident(fileNode, 4096, 8192); !ok || n != 8192 {
			t.Error("not resident")
		}
	}))
	_, _, n, ok := f.Resident(fileNode, int64(len(r.img.Data))-100, 4096)
	require.True(t, ok)
	require.Equal(t, 100, n)
	_, _, n, ok = f.Resident(fileNode, int64(len(r.img.Data))+100, 4096)
	require.True(t, ok)
	require.Zero(t, n)
	_, _, _, ok = f.Resident(fileNode+1, 0, 4096)
	require.False(t, ok)
}
