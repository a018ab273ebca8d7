package fusesession

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	clog "github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// Buffers for answers, by size, shared by all sessions: an idle session holds
// none.
var small, large = pool(plainRoom + 64<<10), pool(plainRoom + MaxMaxRead)

func pool(size int) *sync.Pool {
	return &sync.Pool{New: func() any {
		b := make([]byte, size)
		return &b
	}}
}

// room returns a buffer for the answer to a request, and where it goes back to.
func (r request) room() (*[]byte, *sync.Pool) {
	p := small
	if r.n > 64<<10 {
		p = large
	}
	b, _ := p.Get().(*[]byte) // what the pool's New makes
	return b, p
}

// run takes requests until Shutdown or the end of the connection.
func (s *Session) run() {
	for {
		slot, ok := s.journal.get(s.stopping)
		if !ok {
			return
		}
		if !s.take(slot) {
			s.journal.free <- slot
			return
		}
	}
}

// take fills a slot and answers its requests, until one needs a goroutine, to
// which the slot goes. It returns false at the end.
func (s *Session) take(slot int32) bool {
	mem := s.journal.slot(slot)
	s.journal.touch(slot) // clear does it for later requests
	for {
		n, err := s.read(mem)
		if err != nil {
			if s.missed(err) {
				continue
			}
			return false
		}
		req, err := parseRequest(mem[:n])
		if err != nil {
			// It cannot be answered, for want of its number.
			s.journal.clear(slot)
			s.trouble("taking a request", err)
			continue
		}
		if req.op == opRead && s.files != nil && s.readResident(req) {
			s.resident.Add(1)
			s.journal.clear(slot)
			continue
		}
		if s.conf.Prompt != nil && s.conf.Prompt(req.op, req.node) {
			s.answer(req, mem[:n])
			s.journal.clear(slot)
			continue
		}
		s.work.Go(func() {
			s.answer(req, mem[:n])
			s.journal.clear(slot)
			s.journal.free <- slot
		})
		return true
	}
}

// read waits for a request and takes it.
func (s *Session) read(mem []byte) (int, error) {
	n, err := s.dev.Read(mem)
	var errno syscall.Errno
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &errno) {
		return n, err
	}
	// The poller gives no device back that has an error; ask the device which.
	return unix.Read(s.fd, mem)
}

// missed says whether to go on after a read that gave no request.
func (s *Session) missed(err error) bool {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return false
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ECONNABORTED):
		s.gone.Store(true)
		s.cancel()
		return false
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EINTR):
		return true // its reader gave up while we took it
	}
	// The kernel has answered it with an error, for want of memory or because it
	// is larger than a slot.
	s.trouble("taking a request", err)
	t := time.NewTimer(10 * time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.stopping:
		return false
	}
}

// answer lets FS handle a request and answers it, if it has an answer.
func (s *Session) answer(req request, in []byte) {
	s.asked.Add(1)
	out, home := req.room()
	defer home.Put(out)
	n, status := 0, syscall.EIO
	if int(req.n) <= len(*out)-plainRoom {
		var code int32
		n, code = s.call(in, *out)
		status = syscall.Errno(code)
	}
	if req.silent() || (n == 0 && status == 0) {
		return
	}
	if n == 0 {
		putHeader(*out, req.unique, outHeaderLen, status)
		n = outHeaderLen
	}
	s.reply(req, (*out)[:n])
}

func (s *Session) call(in, out []byte) (int, int32) {
	n, code := s.proto.HandleRequest([][]byte{in}, [][]byte{out})
	return n, int32(code)
}

// reply writes an answer. The kernel knows the request by its number; ENOENT
// says that it was answered before, or given up.
func (s *Session) reply(req request, b []byte) {
	err := s.write(b, nil)
	for errors.Is(err, unix.ENOMEM) && s.ctx.Err() == nil {
		err = s.write(b, nil)
	}
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ECONNABORTED), errors.Is(err, unix.EPERM):
		clog.G(s.ctx).Debug("fuse: the connection ended before an answer")
	default:
		s.trouble("answering", err)
	}
}

// write sends one message.
func (s *Session) write(head, data []byte) error {
	var n int
	var err error
	for {
		if len(data) == 0 {
			n, err = unix.Write(s.fd, head)
		} else {
			n, err = unix.Writev(s.fd, [][]byte{head, data})
		}
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err == nil && n != len(head)+len(data) {
		return unix.EIO
	}
	return err
}

// readResident answers a read from a file, if its bytes are there and in
// memory. It is the hot path: no lock, no allocation, no log.
func (s *Session) readResident(req request) bool {
	if int64(req.n) > int64(s.agreed.maxRead) {
		return false
	}
	fd, at, length, ok := s.files.Resident(req.node, req.off, int(req.n))
	if !ok || length > int(req.n) {
		return false
	}
	out, home := req.room()
	defer home.Put(out)
	b := (*out)[:outHeaderLen+length]
	if length > 0 && !readCached(fd, b[outHeaderLen:], at) {
		return false
	}
	putHeader(b, req.unique, len(b), 0)
	_, err := unix.Write(s.fd, b)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return true
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ECONNABORTED), errors.Is(err, unix.EPERM):
		return true // nobody waits any more
	}
	return false // try again the long way
}

// readCached reads all of b, without waiting for a disk: another request must
// not wait behind it.
func readCached(fd int, b []byte, at int64) bool {
	n, err := unix.Preadv2(fd, [][]byte{b}, at, unix.RWF_NOWAIT)
	return err == nil && n == len(b)
}
