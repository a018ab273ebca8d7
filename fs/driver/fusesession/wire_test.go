package fusesession

import (
	"encoding/binary"
	"os"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// raw builds a request.
func raw(op uint32, unique, node uint64, body ...uint64) []byte {
	b := make([]byte, inHeaderLen+8*len(body))
	le := binary.NativeEndian
	le.PutUint32(b, uint32(len(b)))
	le.PutUint32(b[4:], op)
	le.PutUint64(b[8:], unique)
	le.PutUint64(b[16:], node)
	le.PutUint32(b[32:], 77)
	for i, v := range body {
		le.PutUint64(b[inHeaderLen+8*i:], v)
	}
	return b
}

func TestParseRequest(t *testing.T) {
	for _, c := range []struct {
		b    []byte
		want request
	}{
		{raw(opRead, 4, 2, 0, 8192, 65536, 0, 0), request{op: opRead, unique: 4, node: 2, pid: 77, off: 8192, n: 65536}},
		{raw(opReadDirPlus, 6, 1, 0, 3, 4096, 0, 0), request{op: opReadDirPlus, unique: 6, node: 1, pid: 77, off: 3, n: 4096}},
		{raw(opGetXattr, 8, 2, 100), request{op: opGetXattr, unique: 8, node: 2, pid: 77, n: 100}},
		{raw(opIoctl, 8, 2, 0, 0, 0, 55<<32), request{op: opIoctl, unique: 8, node: 2, pid: 77, n: 55}},
		{raw(opForget, 1<<63|3, 9, 1), request{op: opForget, unique: 1<<63 | 3, node: 9, pid: 77}},
	} {
		got, err := parseRequest(c.b)
		require.NoError(t, err)
		require.Equal(t, c.want, got)
		require.Equal(t, c.want.op == opForget, got.silent())
	}
	short := raw(opRead, 4, 2, 0, 0, 1)
	long := raw(opRead, 4, 2, 0, 0, 1, 0, 0)
	for _, b := range [][]byte{nil, long[:39], long[:79], append(long, 0), short, raw(opRead, 4, 2, 0, 1<<63, 1, 0, 0)} {
		_, err := parseRequest(b)
		require.ErrorIs(t, err, errRequest, "%d", len(b))
	}
}

// FuzzRequest: whatever stands in a slot is refused, or answered with a message
// that is as long as it says, bears the request's number, and fits.
func FuzzRequest(f *testing.F) {
	f.Add(raw(opRead, 4, 2, 0, 0, 4096, 0, 0))
	f.Add(raw(opInit, 2, 0, 7|45<<32, 1<<17|0xffff<<32))
	f.Add(append(raw(1, 5, 1), "file1\x00"...))
	f.Add(raw(opGetXattr, 5, 1, 1<<32-1))
	f.Add(raw(opBatchForget, 5, 1, 1<<32-1))
	f.Add(raw(opIoctl, 5, 1, 0, 0, 0, 1<<63))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > slotSize {
			return
		}
		if len(b) >= 4 {
			binary.NativeEndian.PutUint32(b, uint32(len(b)))
		}
		req, err := parseRequest(b)
		if err != nil {
			return
		}
		fd, err := unix.MemfdCreate("answers", unix.MFD_CLOEXEC)
		require.NoError(t, err)
		defer unix.Close(fd)
		fs := &files{RawFileSystem: fuse.NewDefaultRawFileSystem(), names: []string{"file1"}, content: [][]byte{make([]byte, 5000)}}
		conf := Config{Name: name, Keeper: nothing{}, FS: fs}
		require.NoError(t, conf.defaults())
		s := newSession(t.Context(), conf, nil)
		s.protocol(conf.Options)
		s.fd = fd
		s.answer(req, b)
		var st unix.Stat_t
		require.NoError(t, unix.Fstat(fd, &st))
		n := int(st.Size)
		if n == 0 {
			return // no answer
		}
		var out [outHeaderLen]byte
		_, err = unix.Pread(fd, out[:], 0)
		require.NoError(t, err)
		require.GreaterOrEqual(t, n, outHeaderLen)
		require.EqualValues(t, n, binary.NativeEndian.Uint32(out[:]))
		require.Equal(t, req.unique, binary.NativeEndian.Uint64(out[8:]))
		require.False(t, req.silent())
	})
}

// nothing keeps nothing.
type nothing struct{}

func (nothing) Put(string, *os.File) error { return nil }
func (nothing) Remove(string) error        { return nil }

// FuzzState: a state that was tampered with is refused, or has the slots that
// it says.
func FuzzState(f *testing.F) {
	head := make([]byte, stateHeader)
	j, err := newJournal(2)
	require.NoError(f, err)
	copy(head, j.mem)
	require.NoError(f, j.close())
	f.Add(head[:64], int64(stateHeader+2*slotSize))
	f.Add([]byte{}, int64(stateHeader))
	f.Add(head[:8], int64(0))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		if size < 0 || size > stateHeader+4*slotSize {
			return
		}
		fd, err := unix.MemfdCreate("fuzz", unix.MFD_CLOEXEC)
		require.NoError(t, err)
		file := os.NewFile(uintptr(fd), "fuzz")
		_, err = file.WriteAt(b, 0)
		require.NoError(t, err)
		require.NoError(t, file.Truncate(size))
		j, err := openJournal(file)
		if err != nil {
			require.ErrorIs(t, err, errState)
			return
		}
		require.Equal(t, size, stateHeader+int64(j.slots())*slotSize)
		require.Empty(t, j.free)
		free := len(j.fresh)
		taken, err := Unanswered(file)
		require.NoError(t, err)
		require.EqualValues(t, j.slots(), free+taken)
		for i := range j.slots() {
			if in, ok := j.taken(i); ok {
				_, _ = parseRequest(in)
			}
		}
		_, _ = j.agreed()
		require.NoError(t, j.close())
	})
}

func TestDying(t *testing.T) {
	require.False(t, Dying(0))
	require.False(t, Dying(uint32(os.Getpid())))
	require.True(t, killPending([]byte("Name:\tx\nSigPnd:\t0000000000000100\n")))
	require.True(t, killPending([]byte("ShdPnd:\t0000000000000102\n")))
	require.False(t, killPending([]byte("SigPnd:\t0000000000400002\nSigCgt:\t0000000000000100\n")))
	require.False(t, killPending([]byte("SigPnd:\tx")))
}
