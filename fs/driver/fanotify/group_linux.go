package fanotify

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver/lifetime"
)

const (
	initFlags = unix.FAN_CLASS_PRE_CONTENT | unix.FAN_CLOEXEC | unix.FAN_NONBLOCK |
		// A permission event that finds the queue full is allowed, that is: lost.
		unix.FAN_UNLIMITED_QUEUE | unix.FAN_UNLIMITED_MARKS
	eventFlags = unix.O_RDONLY | unix.O_LARGEFILE | unix.O_CLOEXEC

	// errnoShift places an errno in a FAN_DENY answer (FAN_DENY_ERRNO).
	errnoShift = 24
)

// group is a fanotify group. Its descriptor is a plain number: reads go through
// poll(2) on a thread of their own, not through the runtime's poller.
type group struct {
	fd int
}

// newGroup makes a group.
func newGroup() (*group, error) {
	fd, err := unix.FanotifyInit(initFlags, eventFlags)
	if err != nil {
		return nil, fmt.Errorf("making a fanotify group: %w", err)
	}
	return &group{fd: fd}, nil
}

// adoptGroup duplicates the group that f holds.
func adoptGroup(f *os.File) (*group, error) {
	fd, err := lifetime.Duplicate(f)
	if err != nil {
		return nil, fmt.Errorf("adopting a fanotify group: %w", err)
	}
	// The flag belongs to the open file, which others share: whoever had it
	// before us may have changed it.
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(fmt.Errorf("adopting a fanotify group: %w", err), unix.Close(fd))
	}
	return &group{fd: fd}, nil
}

// mark asks for events of the file; asking again changes nothing.
func (g *group) mark(f *os.File) error {
	return g.change(f, unix.FAN_MARK_ADD, "marking")
}

// unmark asks for no more events. Events that are queued still come.
func (g *group) unmark(f *os.File) error {
	err := g.change(f, unix.FAN_MARK_REMOVE, "unmarking")
	if errors.Is(err, unix.ENOENT) { // it was not marked
		return nil
	}
	return err
}

func (g *group) change(f *os.File, flags uint, what string) error {
	err := lifetime.Control(f, func(fd int) error {
		// Without a path, the file that the descriptor is of.
		return unix.FanotifyMark(g.fd, flags, unix.FAN_PRE_ACCESS, fd, "")
	})
	if err != nil {
		return fmt.Errorf("%s %s: %w", what, f.Name(), err)
	}
	return nil
}

// read takes events into b, as many as fit and are there. The kernel writes them
// straight to where b is: in the slot of a journal, an event is on record from
// the moment at which it is taken.
func (g *group) read(b []byte) (int, error) {
	for {
		n, err := unix.Read(g.fd, b)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// settle answers the event in s, frees s, and closes the descriptor of the
// event: in that order, because answers are matched by number, and a number that
// is closed is at once that of another event. Errno 0 allows; out is scratch.
func (g *group) settle(out *unix.FanotifyResponse, s *slot, fd int32, errno syscall.Errno) error {
	err := g.answer(out, fd, errno)
	s.clear()
	return errors.Join(err, unix.Close(int(fd)))
}

// answer gives the kernel its answer for the oldest event with the number fd;
// that there is none is no error.
func (g *group) answer(response *unix.FanotifyResponse, fd int32, errno syscall.Errno) error {
	*response = unix.FanotifyResponse{Fd: fd, Response: unix.FAN_ALLOW}
	if errno != 0 {
		response.Response = unix.FAN_DENY | uint32(errno)<<errnoShift
	}
	err := g.respond(response)
	if errors.Is(err, unix.EINVAL) {
		// An errno that this kernel does not take: plain FAN_DENY is EPERM, and
		// a reader that is blocked for ever is worse than a wrong errno.
		response.Response = unix.FAN_DENY
		err = g.respond(response)
	}
	if errors.Is(err, unix.ENOENT) { // answered already, by one who died before he could note it
		err = nil
	}
	return err
}

func (g *group) respond(r *unix.FanotifyResponse) error {
	b := unsafe.Slice((*byte)(unsafe.Pointer(r)), unsafe.Sizeof(*r))
	for {
		_, err := unix.Write(g.fd, b)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// file returns a descriptor of the group of its own, to be kept and closed.
func (g *group) file() (*os.File, error) {
	fd, err := unix.FcntlInt(uintptr(g.fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("duplicating the fanotify group: %w", err)
	}
	return os.NewFile(uintptr(fd), GroupName), nil
}

func (g *group) close() error {
	if err := unix.Close(g.fd); err != nil {
		return fmt.Errorf("closing the fanotify group: %w", err)
	}
	return nil
}

// key is the identity of a data file on this machine.
type key struct {
	dev, ino uint64
}

func keyOf(f *os.File) (key, error) {
	st, err := stat(f)
	return key{dev: st.Dev, ino: st.Ino}, err
}

func stat(f *os.File) (st unix.Stat_t, err error) {
	if err = lifetime.Control(f, func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
		return st, fmt.Errorf("identifying %s: %w", f.Name(), err)
	}
	return st, nil
}

// sameOpenFile reports whether a and b share one open file description. A
// kernel without kcmp(2) cannot say, which counts as yes.
func sameOpenFile(a, b *os.File) (bool, error) {
	const kcmpFile = 0
	pid := uintptr(os.Getpid())
	var diff uintptr
	var errno syscall.Errno
	err := lifetime.Control(a, func(x int) error {
		return lifetime.Control(b, func(y int) error {
			diff, _, errno = unix.Syscall6(unix.SYS_KCMP, pid, pid, kcmpFile, uintptr(x), uintptr(y), 0)
			return nil
		})
	})
	if err != nil {
		return false, err
	}
	return errno == unix.ENOSYS || errno == 0 && diff == 0, nil
}

// alone reports whether no open file but that of f, which is open for writing,
// is on its inode: no superblock then holds it. A write lease is granted only in
// that case (fcntl(2)); it is given back at once.
func alone(f *os.File) (yes bool, err error) {
	err = lifetime.Control(f, func(fd int) error {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_WRLCK)
		if err == nil {
			yes = true
			_, err = unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_UNLCK)
		} else if errors.Is(err, unix.EAGAIN) {
			err = nil
		}
		return err
	})
	if err != nil {
		return false, fmt.Errorf("asking who has %s open: %w", f.Name(), err)
	}
	return yes, nil
}
