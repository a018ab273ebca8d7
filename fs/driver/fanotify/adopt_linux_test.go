package fanotify

import (
	"bytes"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
	"github.com/lazyerofs/lazyerofs/tests/testenv/caches"
)

// What everything here is about, as the kernel does it: without a group, holes
// are zeros.
func TestUnguardedMount(t *testing.T) {
	r := newRig(t)
	require.NoError(t, r.d.Shutdown(t.Context()))
	require.NoError(t, r.keeper.Close()) // the last descriptor of the group
	small := "small/199"
	release := caches.Hold(t)
	zeros, err := os.ReadFile(filepath.Join(r.target, small))
	require.NoError(t, err)
	require.Equal(t, make([]byte, len(zeros)), zeros)

	r.d = newDriver(t, r.keeper, r.config(nil))
	r.m, err = r.d.Adopt(t.Context(), r.target, r.layer)
	require.NoError(t, err)
	require.Equal(t, []string{"layer"}, r.quarantined)
	require.ErrorIs(t, r.why, ErrUnguarded)
	require.NoError(t, r.read(bigFile), "what nobody read unguarded is right")
	again, err := os.ReadFile(filepath.Join(r.target, small))
	require.NoError(t, err)
	require.Equal(t, zeros, again, "the page cache keeps the zeros; hence the quarantine")
	release()
}

func TestAdoptRefusesADescriptorOfItsOwn(t *testing.T) {
	r := newRig(t)
	inherited := r.restart()
	own, err := os.OpenFile(r.layer.Data().Name(), os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = r.d.Adopt(t.Context(), r.target, r.layer.Successor(own))
	require.ErrorContains(t, err, "opened anew")
	require.NoError(t, own.Close())

	reader := r.readLater(bigFile) // waits for a proper adoption
	l := r.layer.Successor(inherited[WriterName("layer")][0])
	r.m, err = r.d.Adopt(t.Context(), r.target, l)
	require.NoError(t, err)
	require.NoError(t, r.await(reader))
	require.Empty(t, r.quarantined)
	require.ElementsMatch(t, []string{GroupName, JournalName, WriterName("layer")}, r.keeper.Names())
}

func TestAdoptOfALayerThatBecameComplete(t *testing.T) {
	r := newRig(t)
	inherited := r.restart()
	require.Equal(t, 1, r.d.Stats().Served)
	l := r.layer.Successor(inherited[WriterName("layer")][0])
	require.NoError(t, l.Fill(t.Context()))
	var err error
	r.m, err = r.d.Adopt(t.Context(), r.target, l)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return r.d.Stats().Served == 0 }, patience, time.Millisecond)
	require.Empty(t, r.keeper.Names())
	require.NoError(t, r.read(bigFile))
	require.Zero(t, r.d.Stats().Hits)
}

func TestAdoptNeedsAMount(t *testing.T) {
	r := newRig(t)
	_, err := r.d.Adopt(t.Context(), t.TempDir(), r.layer)
	require.Error(t, err)
	_, err = r.d.Adopt(t.Context(), filepath.Join(r.target, "nothing"), r.layer)
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestSettle(t *testing.T) {
	r := newRig(t)
	lost := t.TempDir()
	other := drivertest.NewLayer(t, t.TempDir(), "lost", drivertest.NewImage(t, 3, false))
	_, err := r.d.Mount(t.Context(), lost, other)
	require.NoError(t, err)
	inherited := r.restart()
	path := filepath.Join(lost, bigFile)
	reader := make(chan error, 1)
	go func() {
		_, err := os.ReadFile(path)
		reader <- err
	}()
	r.m, err = r.d.Adopt(t.Context(), r.target, r.layer.Successor(inherited[WriterName("layer")][0]))
	require.NoError(t, err)

	ids, err := r.d.Settle()
	require.NoError(t, err)
	require.Equal(t, []string{"lost"}, ids)
	require.ErrorIs(t, r.await(reader), syscall.EIO)
	require.NoError(t, r.read(bigFile), "the adopted one is served")
	require.Contains(t, r.keeper.Names(), WriterName("lost"), "still mounted, still guarded")

	// A late adoption is an adoption.
	l := other.Successor(inherited[WriterName("lost")][0])
	m, err := r.d.Adopt(t.Context(), lost, l)
	require.NoError(t, err)
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NotEqual(t, bytes.Repeat([]byte{0}, len(got)), got)
	require.NoError(t, m.Close(t.Context()))
	<-m.Done()
	require.NotContains(t, r.keeper.Names(), WriterName("lost"))
}

func TestOrphansAreBuried(t *testing.T) {
	r := newRig(t)
	writer := r.restart()[WriterName("layer")][0]
	ids, err := r.d.Settle()
	require.NoError(t, err)
	require.Equal(t, []string{"layer"}, ids)
	yes, err := alone(writer)
	require.NoError(t, err)
	require.False(t, yes, "the superblock has the file open")
	require.ErrorIs(t, r.read(bigFile), syscall.EIO)
	require.NotEmpty(t, r.keeper.Names())
	require.NoError(t, syscall.Unmount(r.target, 0))
	require.Eventually(t, func() bool { return len(r.keeper.Names()) == 0 }, patience, time.Millisecond)
	require.Zero(t, r.d.Stats().Served)
}

func TestAfterShutdown(t *testing.T) {
	r := newRig(t)
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
}

func TestNewNeedsAKeeper(t *testing.T) {
	_, err := New(t.Context(), Config{})
	require.ErrorContains(t, err, "keeper")
}

func TestWritersWithoutTheirGroup(t *testing.T) {
	k := &drivertest.Keeper{}
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	require.NoError(t, err)
	require.NoError(t, k.Put(WriterName("x"), f))
	require.NoError(t, k.Put("other", f))
	inherited, err := k.Inherited()
	require.NoError(t, err)
	d := newDriver(t, k, Config{Inherited: inherited})
	require.Equal(t, []string{"other"}, k.Names())
	require.NoError(t, d.Shutdown(t.Context()))
	require.NoError(t, k.Close())
	require.NoError(t, f.Close())
}

func TestProbe(t *testing.T) {
	d := newDriver(t, &drivertest.Keeper{}, Config{})
	require.Equal(t, "fanotify", d.Name())
	require.NoError(t, d.Probe(t.TempDir()))
	require.Error(t, d.Probe("/proc"))
	require.NoError(t, d.Shutdown(t.Context()))
}
