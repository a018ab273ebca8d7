package fanotify

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// put makes s hold an event.
func put(s *slot, ev []byte, k key) {
	copy(s.event(), ev)
	if k != (key{}) {
		s.identify(k)
	}
}

func preContent(fd int32, off, n uint64) []byte {
	return raw(unix.FAN_PRE_ACCESS, fd, rangeRecord(off, n))
}

// bytesOf is a journal of these slots as a successor reads it.
func bytesOf(slots []slot) []byte {
	b := header()
	for i := range slots {
		at := len(b)
		b = append(b, make([]byte, slotLen)...)
		for w := range slots[i] {
			ne.PutUint64(b[at+w*8:], slots[i][w])
		}
	}
	return b
}

func TestSlot(t *testing.T) {
	var s slot
	require.False(t, s.used())
	put(&s, preContent(9, 4096, 8192), key{})
	require.True(t, s.used())
	_, known := s.key()
	require.False(t, known)
	s.identify(key{dev: 7, ino: 8})
	k, known := s.key()
	require.True(t, known)
	require.Equal(t, key{dev: 7, ino: 8}, k)
	ev, _, err := next(s.event())
	require.NoError(t, err, "the kernel's part is as it was")
	require.EqualValues(t, 9, ev.fd)
	s.clear()
	require.Equal(t, slot{}, s)
}

func TestParseJournal(t *testing.T) {
	slots := make([]slot, 5)
	put(&slots[1], preContent(9, 4096, 8192), key{dev: 1, ino: 2})
	put(&slots[3], raw(unix.FAN_Q_OVERFLOW, noFD), key{})
	put(&slots[4], raw(unix.FAN_PRE_ACCESS, 10, []byte{1, 2}), key{})
	list, err := parseJournal(bytesOf(slots))
	require.NoError(t, err)
	require.Len(t, list, 3)
	require.NoError(t, list[0].err)
	require.Equal(t, event{mask: unix.FAN_PRE_ACCESS, fd: 9, pid: 77, ranged: true, off: 4096, n: 8192}, list[0].event)
	require.True(t, list[1].overflow())
	require.ErrorIs(t, list[2].err, errEvent)
	require.EqualValues(t, 10, list[2].fd)
	require.Equal(t, []int{9, 10}, numbers(list))
}

func TestParseJournalRefuses(t *testing.T) {
	good := bytesOf(make([]slot, 1))
	change := func(at int, to byte) []byte {
		b := append([]byte{}, good...)
		b[at] = to
		return b
	}
	for name, b := range map[string][]byte{
		"nothing":    {},
		"short":      good[:slotLen-1],
		"magic":      change(0, 'x'),
		"version":    change(8, 2),
		"slot size":  change(12, 32),
		"event size": change(16, 56),
	} {
		_, err := parseJournal(b)
		require.ErrorIs(t, err, errJournal, name)
	}
	list, err := parseJournal(good[:len(good)-1])
	require.NoError(t, err, "half a slot at the end")
	require.Empty(t, list)
}

func FuzzJournal(f *testing.F) {
	slots := make([]slot, 3)
	put(&slots[0], preContent(9, 4096, 8192), key{dev: 1, ino: 2})
	put(&slots[2], raw(unix.FAN_Q_OVERFLOW, noFD), key{})
	f.Add(bytesOf(slots))
	f.Add(header())
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := parseJournal(b)
		if err != nil {
			require.Empty(t, list)
			return
		}
		require.LessOrEqual(t, len(list), len(b)/slotLen-1)
		for _, fd := range numbers(list) {
			require.GreaterOrEqual(t, fd, 0)
		}
		for _, o := range list {
			require.True(t, o.slot.used())
			if o.err == nil && o.ranged {
				require.GreaterOrEqual(t, o.off+o.n, o.off)
			}
		}
	})
}
