package keeper

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/fdstore"
)

// errFull reports a descriptor that was dropped because the shelf is full.
var errFull = errors.New("too many descriptors stored")

// kcmpFile is KCMP_FILE of linux/kcmp.h: compare two open file descriptions.
const kcmpFile = 0

// shelf holds the stored descriptors in the order in which they came. They are
// plain numbers: an os.File would hand out a descriptor by making the shared
// file description blocking.
type shelf struct {
	max   int
	items []item
}

type item struct {
	name string
	fd   int
}

// put takes fd over. The same open file is kept once, as in systemd.
func (s *shelf) put(name string, fd int) error {
	for _, it := range s.items {
		if it.name == name && sameFile(it.fd, fd) {
			return closeFD(fd)
		}
	}
	if len(s.items) >= s.max {
		return errors.Join(fmt.Errorf("dropping descriptor %s, %d kept: %w", name, s.max, errFull), closeFD(fd))
	}
	s.items = append(s.items, item{name: name, fd: fd})
	return nil
}

// remove closes everything stored under name.
func (s *shelf) remove(name string) error {
	var errs []error
	kept := s.items[:0]
	for _, it := range s.items {
		if it.name == name {
			errs = append(errs, closeFD(it.fd))
			continue
		}
		kept = append(kept, it)
	}
	s.items = kept
	return errors.Join(errs...)
}

// guards counts what is stored and guards mounts: everything but listeners.
func (s *shelf) guards() (n int) {
	for _, it := range s.items {
		if it.name != fdstore.ListenerName {
			n++
		}
	}
	return n
}

// fds returns the descriptors in order and their names joined as LISTEN_FDNAMES.
func (s *shelf) fds() (fds []uintptr, names string) {
	list := make([]string, len(s.items))
	for i, it := range s.items {
		fds = append(fds, uintptr(it.fd))
		list[i] = it.name
	}
	return fds, strings.Join(list, ":")
}

// close drops everything.
func (s *shelf) close() error {
	var errs []error
	for _, it := range s.items {
		errs = append(errs, closeFD(it.fd))
	}
	s.items = nil
	return errors.Join(errs...)
}

// sameFile reports whether a and b are one open file description. A kernel
// without kcmp(2) says no, and the file is kept twice, which harms nobody.
func sameFile(a, b int) bool {
	pid := uintptr(os.Getpid())
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, pid, pid, kcmpFile, uintptr(a), uintptr(b), 0)
	return errno == 0 && r == 0
}

func closeFD(fd int) error {
	if err := unix.Close(fd); err != nil {
		return fmt.Errorf("closing descriptor %d: %w", fd, err)
	}
	return nil
}

// apply acts on one message and its descriptors, which it takes over.
func (s *shelf) apply(m fdstore.Message, fds []int) error {
	var errs []error
	if m.Remove {
		errs = append(errs, s.remove(m.Name))
	}
	for _, fd := range fds {
		if m.Store && m.Name != "" {
			errs = append(errs, s.put(m.Name, fd))
			continue
		}
		// A barrier's pipe, or something nobody asked to keep.
		errs = append(errs, closeFD(fd))
	}
	return errors.Join(errs...)
}
