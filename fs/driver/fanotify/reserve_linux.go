package fanotify

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/lifetime"
)

// reservedName is the name in an Inheritance under which Reserve puts what
// occupies descriptor numbers. Nothing is kept under it.
const reservedName = "fanotify-reserved"

// Reserve occupies the descriptor numbers of all events that a predecessor took
// and did not answer. The kernel matches an answer to an event by number, so an
// event that this process takes must never come under one of them. What was
// inherited at such a number is moved, that is: replaced in the inheritance.
//
// Call it before anything else opens files, right after the descriptors were
// inherited: a file that stands at such a number now and is closed later gives
// it free. New calls it if nobody did. It also raises the limit of descriptors,
// first, because numbers above the limit cannot be occupied.
func Reserve(in driver.Inheritance) error {
	if err := raiseFileLimit(); err != nil {
		return err
	}
	if _, done := in[reservedName]; done || len(in[JournalName]) == 0 || len(in[GroupName]) == 0 {
		return nil
	}
	list, _, err := readJournal(in[JournalName][0])
	if errors.Is(err, errJournal) {
		return nil // New says so
	}
	if err != nil {
		return err
	}
	in[reservedName] = []*os.File{}
	var taken []int
	for _, fd := range numbers(list) {
		f, err := occupy(in[JournalName][0], fd)
		if err != nil {
			return fmt.Errorf("reserving descriptor %d: %w", fd, err)
		}
		if f == nil {
			taken = append(taken, fd)
			continue
		}
		in[reservedName] = append(in[reservedName], f)
	}
	// Every free number is occupied now, so what moves goes to none of them.
	for _, fd := range taken {
		if err := move(in, fd); err != nil {
			return fmt.Errorf("reserving descriptor %d: %w", fd, err)
		}
	}
	return nil
}

// numbers returns the descriptor numbers of a journal's events, each once.
func numbers(list []owed) []int {
	var fds []int
	for _, o := range list {
		if o.fd >= 0 {
			fds = append(fds, int(o.fd))
		}
	}
	slices.Sort(fds)
	return slices.Compact(fds)
}

// occupy makes the free number fd a duplicate of f; nil when it is not free, or
// beyond the limit, where the kernel cannot use it either.
func occupy(f *os.File, fd int) (*os.File, error) {
	var got int
	err := lifetime.Control(f, func(n int) (err error) {
		got, err = unix.FcntlInt(uintptr(n), unix.F_DUPFD_CLOEXEC, fd)
		return err
	})
	switch {
	case errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EMFILE):
		return nil, nil
	case err != nil:
		return nil, err
	case got != fd:
		return nil, unix.Close(got)
	}
	return os.NewFile(uintptr(fd), reservedName), nil
}

// move gives what was inherited at number fd another number and occupies fd.
// What else stands there is left: in a process that has only just begun it is
// the runtime's (epoll, its eventfd), which it never closes.
func move(in driver.Inheritance, fd int) error {
	for name, files := range in {
		for i, f := range files {
			at, err := number(f)
			if err != nil {
				return err
			}
			if at != fd || name == reservedName {
				continue
			}
			if files[i], err = lifetime.DuplicateFile(f); err != nil {
				return err
			}
			// Closed, not replaced by dup3: the runtime polls the file, and an end
			// that it does not see would leave it in its epoll set.
			if err := f.Close(); err != nil {
				return err
			}
			hold, err := occupy(in[JournalName][0], fd)
			if hold != nil {
				in[reservedName] = append(in[reservedName], hold)
			}
			return err
		}
	}
	return nil
}

// number is the descriptor number of f.
func number(f *os.File) (fd int, err error) {
	err = lifetime.Control(f, func(n int) error { fd = n; return nil })
	return fd, err
}

// raiseFileLimit lifts the soft limit to the hard one: each taken event holds a
// descriptor, and one that finds none free is denied by the kernel.
func raiseFileLimit() error {
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		return fmt.Errorf("reading the descriptor limit: %w", err)
	}
	lim.Cur = lim.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		return fmt.Errorf("raising the descriptor limit: %w", err)
	}
	return nil
}
