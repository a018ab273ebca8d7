package fanotify

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
)

// crash ends the driver as kill -9 does for its successor: what it took stays
// unanswered, and its descriptors are closed.
func (r *rig) crash() {
	r.Helper()
	ctx, cancel := context.WithCancel(r.Context())
	cancel()
	if err := r.d.Shutdown(ctx); err != nil {
		require.ErrorIs(r, err, context.Canceled)
	}
}

// waits counts the events that the driver has taken and does not answer. Once it has
// answered those of a predecessor, it answers those for what is there, such as
// metadata, in a moment.
func (r *rig) waits() (n int) {
	for _, o := range unanswered(r.d.journal.slots) {
		if o.err == nil && (r.d.owing.Load() != nil || !o.ranged || !r.layer.Resident(o.off, o.n)) {
			n++
		}
	}
	return n
}

// takes starts readers whose events the driver takes and does not answer.
func (r *rig) takes(names ...string) []<-chan error {
	r.Helper()
	var list []<-chan error
	for _, name := range names {
		before := r.waits()
		list = append(list, r.readLater(name))
		require.Eventually(r, func() bool { return r.waits() > before }, patience, time.Millisecond)
	}
	return list
}

// kept returns what the kept journal says.
func (r *rig) kept() []owed {
	r.Helper()
	inherited, err := r.keeper.Inherited()
	require.NoError(r, err)
	list, _, err := readJournal(inherited[JournalName][0])
	require.NoError(r, err)
	for _, files := range inherited {
		require.NoError(r, closeAll(files))
	}
	return list
}

func TestRecovery(t *testing.T) {
	r := newRig(t)
	release := r.layer.Hold()
	readers := r.takes("dir0/file9", "dir2/file5", "sparse")
	r.crash()
	release()
	owed := r.kept()
	require.Len(t, owed, 3)

	inherited, err := r.keeper.Inherited()
	require.NoError(t, err)
	require.NoError(t, Reserve(inherited))
	for _, fd := range numbers(owed) {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		require.NoError(t, err, "number %d is free", fd)
	}
	r.d = newDriver(t, r.keeper, r.config(inherited))
	// Events that come now are none of those.
	later := r.takes("dir1/file7", "dir2/file8")
	require.Len(t, numbers(unanswered(r.d.journal.slots)), len(readers)+len(later))

	r.adopt(inherited)
	for _, c := range append(readers, later...) {
		require.NoError(t, r.await(c))
	}
	require.Eventually(t, func() bool { return r.d.journal.taken() == 0 && r.d.owing.Load() == nil }, patience, time.Millisecond)
	require.Zero(t, r.d.Stats().Denied)
	require.Empty(t, r.quarantined)
}

func TestCrashDuringRecovery(t *testing.T) {
	r := newRig(t)
	release := r.layer.Hold()
	readers := r.takes("dir0/file9", "sparse")
	r.crash()
	r.succeed()
	readers = append(readers, r.takes("dir1/file7")...)
	r.crash()
	inherited := r.succeed()
	old := r.layer
	r.layer = old.Successor(inherited[WriterName("layer")][0])
	again := r.layer.Hold()
	var err error
	r.m, err = r.d.Adopt(t.Context(), r.target, r.layer)
	require.NoError(t, err)
	r.crash() // while it fills
	again()
	release()
	require.Len(t, r.kept(), 3)
	r.adopt(r.succeed())
	for _, c := range readers {
		require.NoError(t, r.await(c))
	}
	require.Zero(t, r.d.Stats().Denied)
}

func TestRecoveryOfWhatNobodyAdopts(t *testing.T) {
	r := newRig(t)
	release := r.layer.Hold()
	readers := r.takes(bigFile)
	r.crash()
	release()
	r.succeed()
	ids, err := r.d.Settle()
	require.NoError(t, err)
	require.Equal(t, []string{"layer"}, ids)
	require.ErrorIs(t, r.await(readers[0]), syscall.EIO)
}

func TestRecoveryThatCannotFill(t *testing.T) {
	r := newRig(t)
	release := r.layer.Hold()
	readers := r.takes(bigFile)
	r.crash()
	release()
	inherited := r.succeed()
	r.layer = r.layer.Successor(inherited[WriterName("layer")][0])
	r.layer.Fail(errors.New("registry is down"))
	var err error
	r.m, err = r.d.Adopt(t.Context(), r.target, r.layer)
	require.NoError(t, err)
	require.ErrorIs(t, r.await(readers[0]), syscall.EIO)
	r.layer.Fail(nil)
	require.NoError(t, r.read(bigFile))
}

// A reader that was killed while nobody was there: its event is answered all the
// same, or it would stay in the kernel.
func TestRecoveryWithoutItsReader(t *testing.T) {
	r := newRig(t)
	release := r.layer.Hold()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cmd := exec.CommandContext(ctx, "cat", filepath.Join(r.target, bigFile))
	require.NoError(t, cmd.Start())
	require.Eventually(t, func() bool { return r.waits() > 0 }, patience, time.Millisecond)
	r.crash()
	cancel()
	require.Error(t, cmd.Wait())
	release()
	r.adopt(r.succeed())
	require.Eventually(t, func() bool { return r.d.journal.taken() == 0 }, patience, time.Millisecond)
	require.NoError(t, r.read(bigFile))
	require.Zero(t, r.d.Stats().Denied)
}

// A file that no layer owns: nobody can fill it.
func TestRecoveryOfAStranger(t *testing.T) {
	r := newRig(t)
	release := r.layer.Hold()
	r.takes(bigFile)
	for i := range r.d.journal.slots {
		if s := &r.d.journal.slots[i]; s.used() {
			s.identify(key{dev: 1, ino: 1})
		}
	}
	r.crash()
	release()
	r.adopt(r.succeed())
	require.Equal(t, 1, r.d.journal.taken(), "it may still be adopted")
	_, err := r.d.Settle()
	require.NoError(t, err)
	require.Eventually(t, func() bool { return r.d.journal.taken() == 0 }, patience, time.Millisecond)
	require.Positive(t, r.d.Stats().Denied)
}

// The event is on record but not which file it is of.
func TestRecoveryOfAnUnknownFile(t *testing.T) {
	r := newRig(t)
	release := r.layer.Hold()
	readers := r.takes(bigFile)
	// A layer that was never mounted is of no account.
	other := drivertest.NewLayer(t, t.TempDir(), "other", drivertest.NewImage(t, 3, false))
	require.NoError(t, r.keeper.Put(WriterName("other"), other.Data()))
	require.NoError(t, other.Close())
	forget(r.d.journal)
	r.crash()
	release()
	inherited := r.succeed()
	r.adopt(inherited)
	_, err := r.d.Settle()
	require.NoError(t, err)
	require.NoError(t, r.await(readers[0]))
	require.Zero(t, r.d.Stats().Denied)
	require.NoError(t, closeAll(inherited[WriterName("other")]))
}

// forget takes the files out of a journal: their process died before it wrote
// them.
func forget(j *journal) {
	for i := range j.slots {
		j.slots[i][wordDev], j.slots[i][wordIno] = 0, 0
	}
}

func TestGroupWithoutAJournal(t *testing.T) {
	for name, spoil := range map[string]func(*rig){
		"an older build's": func(*rig) {},
		"another build's": func(r *rig) {
			f, err := os.Create(filepath.Join(r.TempDir(), "journal"))
			require.NoError(r, err)
			_, err = f.WriteString("something else")
			require.NoError(r, errors.Join(err, r.keeper.Put(JournalName, f), f.Close()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.crash()
			require.NoError(t, r.keeper.Remove(JournalName))
			spoil(r)
			reader := r.readLater(bigFile) // queued, not taken
			r.adopt(r.succeed())
			require.NoError(t, r.await(reader))

			// From here on there is one.
			release := r.layer.Hold()
			readers := r.takes("dir1/file7")
			r.crash()
			release()
			r.adopt(r.succeed())
			require.NoError(t, r.await(readers[0]))
		})
	}
}

// The predecessor let go of a complete layer's writer while an event was queued.
func TestEventOfALayerThatBecameComplete(t *testing.T) {
	r := newRig(t)
	other := drivertest.NewLayer(t, t.TempDir(), "other", r.img)
	target := t.TempDir()
	m, err := r.d.Mount(t.Context(), target, other)
	require.NoError(t, err)
	release := r.layer.Hold()
	taken := r.takes("dir0/file9")
	r.crash()
	queued := r.readLater("dir1/file7")
	release()
	require.NoError(t, r.layer.Fill(t.Context()))
	require.NoError(t, r.keeper.Remove(WriterName("layer")))

	inherited := r.succeed()
	_, err = r.d.Adopt(t.Context(), target, other.Successor(inherited[WriterName("other")][0]))
	require.NoError(t, err)
	r.m, err = r.d.Adopt(t.Context(), r.target, r.layer)
	require.NoError(t, err)
	_, err = r.d.Settle()
	require.NoError(t, err)
	require.NoError(t, r.await(taken[0]))
	require.NoError(t, r.await(queued))
	require.Empty(t, r.quarantined)
	require.NoError(t, m.Release())
	require.NoError(t, unix.Unmount(target, unix.MNT_DETACH))
	require.NoError(t, other.Close())
}

// The news of an overflow is not lost with the process that took it.
func TestOverflowIsRecovered(t *testing.T) {
	r := newRig(t)
	r.crash()
	inherited := r.succeed()
	r.overflow()
	require.Empty(t, r.quarantined, "nobody could act on it yet")
	r.crash()
	require.NoError(t, closeAll(inherited[WriterName("layer")]))
	inherited = r.succeed()
	r.adopt(inherited)
	require.Equal(t, []string{"layer"}, r.quarantined)
	require.ErrorIs(t, r.why, errSuspect)
	require.ErrorIs(t, r.read(bigFile), syscall.EIO)
	require.Eventually(t, func() bool { return r.d.journal.taken() == 1 }, patience, time.Millisecond)
	_, err := r.d.Settle()
	require.NoError(t, err)
	require.Zero(t, r.d.journal.taken())
}

func TestJournalWithoutItsGroup(t *testing.T) {
	k := &drivertest.Keeper{}
	j, err := newJournal(1)
	require.NoError(t, err)
	require.NoError(t, k.Put(JournalName, j.file))
	require.NoError(t, j.close())
	inherited, err := k.Inherited()
	require.NoError(t, err)
	d := newDriver(t, k, Config{Inherited: inherited})
	require.Empty(t, k.Names())
	require.NoError(t, d.Shutdown(t.Context()))
}

// What was inherited at the number of an event is moved.
func TestReserveMoves(t *testing.T) {
	r := newRig(t)
	r.crash()
	inherited, err := r.keeper.Inherited()
	require.NoError(t, err)
	writer := inherited[WriterName("layer")][0]
	fd, err := number(writer)
	require.NoError(t, err)
	journal := inherited[JournalName][0]
	var s slot
	put(&s, preContent(int32(fd), 0, 4096), key{dev: 1, ino: 1})
	_, err = journal.WriteAt(bytesOf([]slot{s}), 0)
	require.NoError(t, err)

	require.NoError(t, Reserve(inherited))
	moved := inherited[WriterName("layer")][0]
	require.NotSame(t, writer, moved)
	now, err := number(moved)
	require.NoError(t, err)
	require.NotEqual(t, fd, now)
	require.Len(t, inherited[reservedName], 1)
	there, err := number(inherited[reservedName][0])
	require.NoError(t, err)
	require.Equal(t, fd, there)
	require.NoError(t, Reserve(inherited), "twice changes nothing")
	require.Same(t, moved, inherited[WriterName("layer")][0])

	r.d = newDriver(t, r.keeper, r.config(inherited))
	r.adopt(inherited)
	_, err = r.d.Settle()
	require.NoError(t, err)
	require.NoError(t, r.read(bigFile))
	require.Eventually(t, func() bool { return r.d.journal.taken() == 0 }, patience, time.Millisecond)
	require.Eventually(t, func() bool { // a moment after the slot
		_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		return err == unix.EBADF
	}, patience, time.Millisecond, "the number is free again")
}

// gated is a layer of which one range is filled only when it may.
type gated struct {
	driver.Layer
	from int64
	gate chan struct{}
}

func (g *gated) Ensure(ctx context.Context, off, n int64) error {
	if off >= g.from {
		select {
		case <-g.gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return g.Layer.Ensure(ctx, off, n)
}
