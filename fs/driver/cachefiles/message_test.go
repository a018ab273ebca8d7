package cachefiles

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"
)

// msg builds struct cachefiles_msg.
func msg(id, op, object uint32, body []byte) []byte {
	ne := binary.NativeEndian
	var b []byte
	for _, v := range []uint32{id, op, uint32(headerLen + len(body)), object} {
		b = ne.AppendUint32(b, v)
	}
	return append(b, body...)
}

func openMsg(id, object uint32, fd int32, volume, cookie string) []byte {
	ne := binary.NativeEndian
	var b []byte
	for _, v := range []uint32{uint32(len(volume)), uint32(len(cookie)), uint32(fd), 0} {
		b = ne.AppendUint32(b, v)
	}
	return msg(id, opOpen, object, append(append(b, volume...), cookie...))
}

func readMsg(id, object uint32, off, n uint64) []byte {
	ne := binary.NativeEndian
	return msg(id, opRead, object, ne.AppendUint64(ne.AppendUint64(nil, off), n))
}

func TestParseMessage(t *testing.T) {
	m, err := parseMessage(openMsg(3, 7, 9, "erofs,lazyerofs\x00", "layer-1.abc.d"))
	require.NoError(t, err)
	require.Equal(t, message{id: 3, op: opOpen, object: 7, fd: 9, volume: "erofs,lazyerofs", cookie: "layer-1.abc.d"}, m)

	m, err = parseMessage(readMsg(4, 7, 1<<40, 131072))
	require.NoError(t, err)
	require.Equal(t, message{id: 4, op: opRead, object: 7, fd: -1, off: 1 << 40, n: 131072}, m)

	m, err = parseMessage(msg(5, opClose, 7, nil))
	require.NoError(t, err)
	require.Equal(t, message{id: 5, op: opClose, object: 7, fd: -1}, m)
}

func TestParseMessageRefuses(t *testing.T) {
	short := openMsg(3, 7, 9, "v\x00", "c")
	for name, b := range map[string][]byte{
		"nothing":            nil,
		"half a header":      make([]byte, headerLen-1),
		"wrong length":       append(readMsg(1, 2, 3, 4), 0),
		"unknown opcode":     msg(1, 3, 2, nil),
		"READ without range": msg(1, opRead, 2, make([]byte, 8)),
		"READ far away":      readMsg(1, 2, 1<<63, 1),
		"READ of too much":   readMsg(1, 2, 0, 1<<63),
		"OPEN without keys":  msg(1, opOpen, 2, make([]byte, 8)),
		"OPEN, key too long": openMsg(1, 2, 3, "v\x00", "c")[:len(short)-1],
		"OPEN, no NUL":       openMsg(1, 2, 3, "vv", "c"),
		"OPEN, NUL inside":   openMsg(1, 2, 3, "v\x00w\x00", "c"),
		"OPEN, no volume":    openMsg(1, 2, 3, "", "c"),
	} {
		_, err := parseMessage(b)
		require.ErrorIs(t, err, ErrMessage, name)
	}
}

// What is refused must be answered: its number and its descriptor are known.
func TestRefusedOpenKeepsItsDescriptor(t *testing.T) {
	m, err := parseMessage(openMsg(11, 7, 42, "no string", "c"))
	require.Error(t, err)
	require.Equal(t, uint32(11), m.id)
	require.EqualValues(t, opOpen, m.op)
	require.Equal(t, 42, m.fd)
}

func FuzzParseMessage(f *testing.F) {
	f.Add(openMsg(3, 7, 9, "erofs,lazyerofs\x00", "layer-1.abc.d"))
	f.Add(readMsg(4, 7, 4096, 131072))
	f.Add(msg(5, opClose, 7, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMessage(b)
		if err != nil {
			return
		}
		var again []byte
		switch m.op {
		case opOpen:
			again = openMsg(m.id, m.object, int32(m.fd), m.volume+"\x00", m.cookie)
			copy(again[headerLen+12:headerLen+16], b[headerLen+12:]) // flags
		case opRead:
			again = readMsg(m.id, m.object, uint64(m.off), uint64(m.n))
		case opClose:
			again = b
		default:
			t.Fatalf("accepted opcode %d", m.op)
		}
		require.Equal(t, b, again)
		if m.op != opOpen && m.fd != -1 {
			t.Fatal("invented a descriptor")
		}
	})
}

func TestKeys(t *testing.T) {
	b := base("sha256-0a1b")
	require.NotEqual(t, b, base("sha256-0a1b"), "two mounts share cache files")
	for _, suffix := range []string{metaSuffix, dataSuffix} {
		got, id, ok := splitKey(b + suffix)
		require.True(t, ok)
		require.Equal(t, b, got)
		require.Equal(t, "sha256-0a1b", id)
	}
	for _, bad := range []string{"", "x", "x.d", ".abc.d", "x..d", "x.abc", "x.abc.e"} {
		_, _, ok := splitKey(bad)
		require.False(t, ok, bad)
	}
}

func TestKeptNames(t *testing.T) {
	for _, k := range []kept{
		{msg: 0, id: 1, size: 0, key: "a-b-c.xyz.m"},
		{msg: 1<<32 - 1, id: 1<<31 - 1, size: 1<<62 + 1, key: "layer.abcdefghij.d"},
	} {
		got, ok := parseKept(k.name())
		require.True(t, ok)
		require.Equal(t, k, got)
		require.LessOrEqual(t, len(k.name()), 255)
	}
	for _, bad := range []string{
		DeviceName, "fanotify-group", objectPrefix, objectPrefix + "1-2-3", objectPrefix + "1-2-3-nokey",
		objectPrefix + "1-2--3-a.b.d", objectPrefix + "01-2-3-a.b.d", objectPrefix + "1-x-3-a.b.d", objectPrefix + "1-2-3x-a.b.d",
		objectPrefix + "4294967296-2-3-a.b.d",
	} {
		_, ok := parseKept(bad)
		require.False(t, ok, bad)
	}
}

func FuzzParseKept(f *testing.F) {
	f.Add(kept{msg: 1, id: 2, size: 3, key: "l.abc.d"}.name())
	f.Fuzz(func(t *testing.T, name string) {
		if k, ok := parseKept(name); ok {
			require.Equal(t, name, k.name())
		}
	})
}
