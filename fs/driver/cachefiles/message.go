package cachefiles

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// Opcodes and lengths of what the kernel asks (uapi/linux/cachefiles.h).
const (
	opOpen  = 0
	opClose = 1
	opRead  = 2

	headerLen = 16
	openLen   = 16 // without the keys
	readLen   = 16

	// messageMax holds any message: both keys are at most 255 bytes and a NUL.
	messageMax = 4096
)

// ErrMessage reports a message of the kernel that is not understood.
var ErrMessage = errors.New("malformed cachefiles message")

// message is one request.
type message struct {
	id     uint32 // names the request in the answer
	op     uint32
	object uint32

	// Of opOpen. fd is -1 otherwise.
	fd             int
	volume, cookie string

	// Of opRead, bytes of the object.
	off, n int64
}

// parseMessage reads struct cachefiles_msg {u32 msg_id, opcode, len, object_id}
// with what follows: for OPEN struct cachefiles_open {u32 volume_key_size,
// cookie_key_size, fd, flags} and the keys, for READ {u64 off, len}. With an error
// the request's number, opcode and descriptor are returned as far as they were read, so
// that it can be refused.
func parseMessage(b []byte) (message, error) {
	m := message{fd: -1}
	ne := binary.NativeEndian
	if len(b) < headerLen {
		return m, fmt.Errorf("%w: %d bytes", ErrMessage, len(b))
	}
	m.id, m.op, m.object = ne.Uint32(b), ne.Uint32(b[4:]), ne.Uint32(b[12:])
	total, body := ne.Uint32(b[8:]), b[headerLen:]
	if m.op == opOpen && len(body) >= openLen {
		m.fd = int(int32(ne.Uint32(body[8:])))
	}
	if uint64(total) != uint64(len(b)) {
		return m, fmt.Errorf("%w: %d bytes that say they are %d", ErrMessage, len(b), total)
	}
	switch m.op {
	case opOpen:
		return m, m.parseOpen(body)
	case opClose:
		return m, nil
	case opRead:
		if len(body) != readLen {
			return m, fmt.Errorf("%w: READ of %d bytes", ErrMessage, len(body))
		}
		off, n := ne.Uint64(body), ne.Uint64(body[8:])
		if off > 1<<62 || n > 1<<62 {
			return m, fmt.Errorf("%w: READ of %d bytes at %d", ErrMessage, n, off)
		}
		m.off, m.n = int64(off), int64(n)
		return m, nil
	}
	return m, fmt.Errorf("%w: opcode %d", ErrMessage, m.op)
}

func (m *message) parseOpen(b []byte) error {
	if len(b) < openLen {
		return fmt.Errorf("%w: OPEN of %d bytes", ErrMessage, len(b))
	}
	volume, cookie := uint64(binary.NativeEndian.Uint32(b)), uint64(binary.NativeEndian.Uint32(b[4:]))
	keys := b[openLen:]
	if volume+cookie != uint64(len(keys)) || volume == 0 {
		return fmt.Errorf("%w: keys of %d and %d bytes in %d", ErrMessage, volume, cookie, len(keys))
	}
	// The volume key is a string with its NUL, the cookie key is bytes.
	name, rest, ok := strings.Cut(string(keys[:volume]), "\x00")
	if !ok || rest != "" {
		return fmt.Errorf("%w: the volume key %q is no string", ErrMessage, keys[:volume])
	}
	m.volume, m.cookie = name, string(keys[volume:])
	return nil
}
