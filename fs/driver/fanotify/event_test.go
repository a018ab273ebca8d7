package fanotify

import (
	"encoding/binary"
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

var ne = binary.NativeEndian

// raw builds an event as the kernel lays it out.
func raw(mask uint64, fd int32, records ...[]byte) []byte {
	b := make([]byte, metadataLen)
	b[4] = unix.FANOTIFY_METADATA_VERSION
	ne.PutUint16(b[6:], metadataLen)
	ne.PutUint64(b[8:], mask)
	ne.PutUint32(b[16:], uint32(fd))
	ne.PutUint32(b[20:], 77)
	b = slices.Concat(append([][]byte{b}, records...)...)
	ne.PutUint32(b, uint32(len(b)))
	return b
}

func record(kind byte, body ...byte) []byte {
	b := make([]byte, infoHdrLen, infoHdrLen+len(body))
	b[0] = kind
	binary.NativeEndian.PutUint16(b[2:], uint16(infoHdrLen+len(body)))
	return append(b, body...)
}

func rangeRecord(off, n uint64) []byte {
	body := make([]byte, rangeLen-infoHdrLen)
	binary.NativeEndian.PutUint64(body[4:], off)
	binary.NativeEndian.PutUint64(body[12:], n)
	return record(unix.FAN_EVENT_INFO_TYPE_RANGE, body...)
}

func TestNext(t *testing.T) {
	first := raw(unix.FAN_PRE_ACCESS, 9, rangeRecord(4096, 8192))
	require.Len(t, first, eventLen)
	second := raw(unix.FAN_Q_OVERFLOW, noFD)
	third := raw(unix.FAN_PRE_ACCESS, 10, record(99, 1, 2, 3, 4), rangeRecord(0, 1))
	b := append(append(append([]byte{}, first...), second...), third...)

	e, b, err := next(b)
	require.NoError(t, err)
	require.Equal(t, event{mask: unix.FAN_PRE_ACCESS, fd: 9, pid: 77, ranged: true, off: 4096, n: 8192}, e)
	require.False(t, e.overflow())
	e, b, err = next(b)
	require.NoError(t, err)
	require.True(t, e.overflow())
	require.EqualValues(t, noFD, e.fd)
	e, b, err = next(b)
	require.NoError(t, err)
	require.Equal(t, event{mask: unix.FAN_PRE_ACCESS, fd: 10, pid: 77, ranged: true, n: 1}, e)
	require.Empty(t, b)
}

func TestNextRefuses(t *testing.T) {
	good := raw(unix.FAN_PRE_ACCESS, 9, rangeRecord(0, 4096))
	change := func(at int, to byte) []byte {
		b := append([]byte{}, good...)
		b[at] = to
		return b
	}
	for name, c := range map[string]struct {
		b    []byte
		fd   int32
		rest int
	}{
		"short":               {good[:metadataLen-1], noFD, 0},
		"cut":                 {good[:eventLen-1], 9, 0},
		"version":             {change(4, 9), 9, 0},
		"length below header": {change(0, 8), 9, 0},
		"header too short":    {change(6, 8), 9, 0},
		"record beyond end":   {change(metadataLen+2, 25), 9, 0},
		"record of nothing":   {change(metadataLen+2, 0), 9, 0},
		"short range record":  {raw(1, 9, record(unix.FAN_EVENT_INFO_TYPE_RANGE, 1, 2, 3, 4)), 9, 0},
		"two ranges":          {raw(1, 9, rangeRecord(0, 1), rangeRecord(0, 1)), 9, 0},
		"tail":                {raw(1, 9, rangeRecord(0, 1), []byte{1, 2}), 9, 0},
		"offset too large":    {raw(1, 9, rangeRecord(math.MaxInt64+1, 1)), 9, 0},
		"end overflows":       {raw(1, 9, rangeRecord(math.MaxInt64, 1)), 9, 0},
		"next event is kept":  {append(raw(1, 9, []byte{1}), good...), 9, eventLen},
	} {
		e, rest, err := next(c.b)
		require.ErrorIs(t, err, errEvent, name)
		require.Equal(t, c.fd, e.fd, name)
		require.Len(t, rest, c.rest, name)
	}
}

func TestClamp(t *testing.T) {
	for _, c := range []struct{ off, n, size, wantOff, wantN int64 }{
		{0, 4096, 8192, 0, 4096},
		{4096, 8192, 5000, 4096, 904},
		{8192, 4096, 5000, 5000, 0},
		{0, math.MaxInt64, 10, 0, 10},
	} {
		off, n := clamp(c.off, c.n, c.size)
		require.Equal(t, c.wantOff, off)
		require.Equal(t, c.wantN, n)
	}
}

func FuzzNext(f *testing.F) {
	f.Add(raw(unix.FAN_PRE_ACCESS, 9, rangeRecord(4096, 8192)))
	f.Add(append(raw(unix.FAN_Q_OVERFLOW, noFD), raw(unix.FAN_PRE_ACCESS, 3, record(1), rangeRecord(0, 1))...))
	f.Add(raw(unix.FAN_PRE_ACCESS, 9, rangeRecord(math.MaxUint64, math.MaxUint64)))
	f.Fuzz(func(t *testing.T, b []byte) {
		for len(b) > 0 {
			e, rest, err := next(b)
			require.Less(t, len(rest), len(b), "no progress")
			if err == nil && e.ranged {
				require.GreaterOrEqual(t, e.off, int64(0))
				require.GreaterOrEqual(t, e.n, int64(0))
				require.GreaterOrEqual(t, e.off+e.n, e.off)
			}
			if err != nil {
				require.Falsef(t, e.ranged && e.off < 0, "half a range")
			}
			b = rest
		}
	})
}
