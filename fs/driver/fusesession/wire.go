package fusesession

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
)

// Sizes and numbers of the FUSE protocol (uapi/linux/fuse.h), of which this
// package reads and writes only what go-fuse leaves to it.
const (
	inHeaderLen  = 40 // struct fuse_in_header
	outHeaderLen = 16 // struct fuse_out_header
	readInLen    = inHeaderLen + 40
	initOutLen   = 64

	opForget      = 2
	opRead        = 15
	opGetXattr    = 22
	opListXattr   = 23
	opInit        = 26
	opReadDir     = 28
	opInterrupt   = 36
	opIoctl       = 39
	opNotifyReply = 41
	opBatchForget = 42
	opReadDirPlus = 44

	notifyStore  = 4
	notifyResend = 7
)

// slotSize is the least buffer that read(2) of /dev/fuse takes while max_write
// is 4096 (FUSE_MIN_READ_BUFFER), and so what a request may have.
const slotSize = 8192

// plainRoom is what answers without a length of their own need: a header, the
// largest structure, or a symbolic link.
const plainRoom = 8192

// errRequest reports bytes that are no request.
var errRequest = errors.New("not a FUSE request")

// request is what this package wants to know of a request.
type request struct {
	op     uint32
	unique uint64
	node   uint64
	pid    uint32
	// READ and READDIR: the range, in bytes of the file or in offsets of the
	// directory. GETXATTR and LISTXATTR: n is the size of the caller's buffer.
	off int64
	n   uint32
}

// parseRequest reads a request as the kernel or a predecessor left it in a
// slot; b ends where it ends.
func parseRequest(b []byte) (request, error) {
	le := binary.NativeEndian
	if len(b) < inHeaderLen {
		return request{}, fmt.Errorf("%w: %d bytes", errRequest, len(b))
	}
	if n := le.Uint32(b); int64(n) != int64(len(b)) {
		return request{}, fmt.Errorf("%w: %d bytes that say they are %d", errRequest, len(b), n)
	}
	r := request{op: le.Uint32(b[4:]), unique: le.Uint64(b[8:]), node: le.Uint64(b[16:]), pid: le.Uint32(b[32:])}
	switch body := b[inHeaderLen:]; r.op {
	case opRead, opReadDir, opReadDirPlus: // struct fuse_read_in
		if len(b) < readInLen {
			return request{}, fmt.Errorf("%w: a read of %d bytes", errRequest, len(b))
		}
		r.off, r.n = int64(le.Uint64(body[8:])), le.Uint32(body[16:])
		if r.off < 0 {
			return request{}, fmt.Errorf("%w: a read at %d", errRequest, r.off)
		}
	case opGetXattr, opListXattr: // struct fuse_getxattr_in
		if len(body) >= 4 {
			r.n = le.Uint32(body)
		}
	case opIoctl: // struct fuse_ioctl_in
		if len(body) >= 32 {
			r.n = le.Uint32(body[28:])
		}
	}
	return r, nil
}

// silent reports whether the kernel expects no answer.
func (r request) silent() bool {
	switch r.op {
	case opForget, opBatchForget, opInterrupt, opNotifyReply:
		return true
	}
	return false
}

// putHeader writes the header of an answer of n bytes in all.
func putHeader(b []byte, unique uint64, n int, errno syscall.Errno) {
	le := binary.NativeEndian
	le.PutUint32(b, uint32(n))
	le.PutUint32(b[4:], uint32(-int32(errno)))
	le.PutUint64(b[8:], unique)
}

// putNotify writes the header of a message of n bytes in all that answers
// nothing.
func putNotify(b []byte, code uint32, n int) {
	le := binary.NativeEndian
	le.PutUint32(b, uint32(n))
	le.PutUint32(b[4:], code)
	le.PutUint64(b[8:], 0)
}
