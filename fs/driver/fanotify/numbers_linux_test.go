package fanotify

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
)

// shared is a data file of which two reads were taken under one descriptor
// number by a process that is dead. Reads of the file itself are events as good
// as those of a mount of it.
type shared struct {
	*rig
	group *group
	file  *os.File // raises events
	at    []int64
	reads []<-chan error
	fd    int32
}

const readLen = 8192

func newShared(t *testing.T) *shared {
	layer, g := markedLayer(t)
	s := &shared{rig: &rig{T: t, keeper: &drivertest.Keeper{}, layer: layer, img: drivertest.NewImage(t, 2, false)}, group: g}
	var err error
	s.file, err = os.Open(layer.Data().Name())
	require.NoError(t, err)
	size := int64(len(s.img.Data))
	s.at = []int64{size / 2 &^ 4095, (size - 1<<20) &^ 4095}
	t.Cleanup(func() { require.NoError(t, errors.Join(s.file.Close(), s.keeper.Close())) })
	return s
}

func (s *shared) start(i int) {
	c := make(chan error, 1)
	s.reads = append(s.reads, c)
	go func() {
		got := make([]byte, readLen)
		_, err := s.file.ReadAt(got, s.at[i])
		if err == nil && !bytes.Equal(got, s.img.Data[s.at[i]:s.at[i]+readLen]) {
			err = fmt.Errorf("read %d has wrong bytes", i)
		}
		c <- err
	}()
}

// await returns when there is an event. The runtime's own signals interrupt poll(2),
// which is never restarted (signal(7)).
func await(fds []unix.PollFd) error {
	for {
		if _, err := unix.Poll(fds, -1); err != unix.EINTR {
			return err
		}
	}
}

// take takes one event as the dead process did: into a slot, then its descriptor
// is closed.
func (s *shared) take(into *slot) {
	require.NoError(s, await([]unix.PollFd{{Fd: int32(s.group.fd), Events: unix.POLLIN}}))
	n, err := s.group.read(into.event())
	require.NoError(s, err)
	ev, _, err := next(into.event()[:n])
	require.NoError(s, err)
	k, err := keyOf(s.layer.Data())
	require.NoError(s, err)
	into.identify(k)
	s.fd = ev.fd
	require.NoError(s, unix.Close(int(ev.fd)))
}

// occupy keeps others away from the number.
func (s *shared) occupy() int {
	fd, err := unix.FcntlInt(uintptr(s.group.fd), unix.F_DUPFD_CLOEXEC, int(s.fd))
	require.NoError(s, err)
	require.EqualValues(s, s.fd, fd)
	return fd
}

// inherit keeps everything and makes the successor.
func (s *shared) inherit(slots []slot) driver.Inheritance {
	f, err := s.group.file()
	require.NoError(s, err)
	j, err := newJournal(len(slots))
	require.NoError(s, err)
	copy(j.slots, slots)
	require.NoError(s, errors.Join(
		s.keeper.Put(JournalName, j.file), j.close(),
		s.keeper.Put(GroupName, f), f.Close(),
		s.keeper.Put(WriterName("layer"), s.layer.Data())))
	inherited, err := s.keeper.Inherited()
	require.NoError(s, err)
	return inherited
}

// serve makes the successor know the layer without a mount.
func (s *shared) serve(inherited driver.Inheritance) *gated {
	l := &gated{Layer: s.layer.Successor(inherited[WriterName("layer")][0]), from: s.at[1], gate: make(chan struct{})}
	_, _, err := s.d.prepare("", l, true)
	require.NoError(s, err)
	return l
}

// neither makes sure that no read has ended.
func (s *shared) neither() {
	for _, c := range s.reads {
		select {
		case err := <-c:
			require.Fail(s, "answered before all ranges of the number were filled", "%v", err)
		default:
		}
	}
}

func (s *shared) finish(l *gated, inherited driver.Inheritance) {
	require.Eventually(s, func() bool { return l.Resident(s.at[0], readLen) }, patience, time.Millisecond)
	s.neither()
	close(l.gate)
	for _, c := range s.reads {
		require.NoError(s, s.await(c))
	}
	require.Eventually(s, func() bool { return s.d.owing.Load() == nil }, patience, time.Millisecond)
	require.Zero(s, s.d.journal.taken())
	require.NoError(s, s.d.Shutdown(s.Context()))
	require.NoError(s, closeAll(inherited[WriterName("layer")]))
}

// Two events have one number, and a third slot was answered already: all is
// filled before the first answer, since the kernel chooses which event it is for.
func TestTwoEventsUnderOneNumber(t *testing.T) {
	s := newShared(t)
	slots := make([]slot, 3)
	for i := range 2 {
		s.start(i)
		s.take(&slots[i])
	}
	first, _, err := next(slots[0].event())
	require.NoError(t, err)
	require.Equal(t, first.fd, s.fd, "the number did not come again")
	slots[2] = slots[0]
	stranger := s.occupy()
	inherited := s.inherit(slots)
	require.NoError(t, unix.Close(stranger))
	s.d = newDriver(t, s.keeper, Config{Inherited: inherited})
	s.finish(s.serve(inherited), inherited)
	_, err = unix.FcntlInt(uintptr(s.fd), unix.F_GETFD, 0)
	require.ErrorIs(t, err, unix.EBADF, "the number is free again")
}

// A number that Reserve could not occupy comes again under a new event.
func TestNumberThatComesAgain(t *testing.T) {
	s := newShared(t)
	slots := make([]slot, 1)
	s.start(0)
	s.take(&slots[0])
	stranger := s.occupy()
	inherited := s.inherit(slots)
	s.d = newDriver(t, s.keeper, Config{Inherited: inherited})
	require.Empty(t, inherited[reservedName])
	require.NoError(t, unix.Close(stranger))
	s.start(1)
	require.Eventually(t, func() bool { return s.d.journal.taken() == 2 }, patience, time.Millisecond)
	require.Len(t, numbers(unanswered(s.d.journal.slots)), 1, "the number did not come again")
	s.finish(s.serve(inherited), inherited)
}
