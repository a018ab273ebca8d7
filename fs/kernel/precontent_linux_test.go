package kernel

import (
	"encoding/binary"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// event builds struct fanotify_event_metadata with the records.
func event(mask uint64, fd int32, records ...[]byte) []byte {
	ne := binary.NativeEndian
	b := append([]byte(nil), make([]byte, 24)...)
	b[4] = unix.FANOTIFY_METADATA_VERSION
	ne.PutUint16(b[6:], 24)
	ne.PutUint64(b[8:], mask)
	ne.PutUint32(b[16:], uint32(fd))
	for _, r := range records {
		b = append(b, r...)
	}
	ne.PutUint32(b, uint32(len(b)))
	return b
}

func record(kind byte, payload ...uint64) []byte {
	ne := binary.NativeEndian
	b := make([]byte, 8, 8+8*len(payload))
	b[0] = kind
	for _, p := range payload {
		b = ne.AppendUint64(b, p)
	}
	ne.PutUint16(b[2:], uint16(len(b)))
	return b
}

func TestParseRangeEvent(t *testing.T) {
	b := event(unix.FAN_PRE_ACCESS, 7, record(1, 5), record(unix.FAN_EVENT_INFO_TYPE_RANGE, 4096, 8192))
	e, off, count, err := parseRangeEvent(b)
	require.NoError(t, err)
	require.Equal(t, rangeEvent{fd: 7, mask: unix.FAN_PRE_ACCESS}, e)
	require.EqualValues(t, 4096, off)
	require.EqualValues(t, 8192, count)

	_, _, _, err = parseRangeEvent(event(unix.FAN_PRE_ACCESS, 7, record(1, 5)))
	require.ErrorIs(t, err, ErrNotSupported, "no range record")
	b[4]++
	e, _, _, err = parseRangeEvent(b)
	require.ErrorIs(t, err, ErrNotSupported, "unknown version")
	require.EqualValues(t, 7, e.fd, "the descriptor is returned for closing")
	for n := range 24 {
		e, _, _, err = parseRangeEvent(b[:n])
		require.Error(t, err)
		require.EqualValues(t, -1, e.fd)
	}
}

// A file that carries no mark is read without an event, as on a file system
// that takes marks and ignores them: the probe must say so and not wait.
func TestNoEventIsConclusive(t *testing.T) {
	p, err := newPreContentProbe(t.TempDir() + "/data")
	require.NoError(t, err)
	defer p.close()
	require.NoError(t, p.mark())
	var ended [2]int
	require.NoError(t, unix.Pipe2(ended[:], unix.O_CLOEXEC))
	defer unix.Close(ended[0])
	require.NoError(t, unix.Close(ended[1]))
	err = p.serve(make([]byte, p.page), ended[0])
	require.ErrorIs(t, err, ErrNotSupported)
	require.ErrorContains(t, err, "raised no event")
}

// The writer was opened before the mark: it can read the file while nobody
// answers.
func TestWriterRaisesNoEvents(t *testing.T) {
	p, err := newPreContentProbe(t.TempDir() + "/data")
	require.NoError(t, err)
	defer p.close()
	require.NoError(t, p.mark())
	_, err = p.writer.ReadAt(make([]byte, p.page), 0)
	require.NoError(t, err)
	_, err = unix.Read(p.group, make([]byte, 512))
	require.ErrorIs(t, err, unix.EAGAIN)
}

func TestProbeImageMounts(t *testing.T) {
	image, want := probeImage()
	path := t.TempDir() + "/image"
	require.NoError(t, os.WriteFile(path, image, 0o600))
	got, err := readProbeImage(path)
	require.NoError(t, err)
	require.Equal(t, want, got)

	image[1024+80] = 0x80 // a feature that no kernel knows alone
	image[1024+83] = 0x80
	require.NoError(t, os.WriteFile(path, image, 0o600))
	_, err = readProbeImage(path)
	require.Error(t, err)
}

func FuzzParseRangeEvent(f *testing.F) {
	f.Add(event(unix.FAN_PRE_ACCESS, 7, record(unix.FAN_EVENT_INFO_TYPE_RANGE, 4096, 8192)))
	f.Add(event(unix.FAN_PRE_ACCESS, -1, record(1), record(5, 1)))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, _, _, err := parseRangeEvent(b)
		if err == nil && len(b) < 48 {
			t.Fatalf("accepted %d bytes", len(b))
		}
		if len(b) < 24 && e.fd != -1 {
			t.Fatal("invented a descriptor")
		}
	})
}
