package cachefiles

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver/lifetime"
)

const (
	devicePath = "/dev/cachefiles"

	// readComplete is CACHEFILES_IOC_READ_COMPLETE, _IOW(0x98, 1, int).
	readComplete = 0x40049801
)

// limits keep the kernel from refusing writes on a disk that is nearly full: what
// it would protect is ours. Each must hold with the defaults of the others (run 7,
// cull 5, stop 1) when it is said.
var limits = []string{"bstop 0%", "fstop 0%", "bcull 1%", "fcull 1%", "brun 2%", "frun 2%"}

// device is an open /dev/cachefiles: one on-demand cache. Its descriptor is a
// plain number, since poll(2) runs on a thread of its own.
type device struct {
	fd int
}

// bindDevice opens the device and binds it to dir, which is emptied: what an
// earlier cache left there was never tied to its data over a power loss, and
// nothing will ask for it.
func bindDevice(dir string) (_ *device, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Open(devicePath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", devicePath, err)
	}
	d := &device{fd: fd}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	// Not before the device is ours: another cache may live there.
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o700)); err != nil {
		return nil, fmt.Errorf("emptying the kernel's cache: %w", err)
	}
	// dir comes before bind, which says EINVAL without it.
	for _, c := range append([]string{"dir " + dir, "tag " + domain}, limits...) {
		if err := d.command(c); err != nil {
			return nil, err
		}
	}
	return d, d.command("bind ondemand")
}

// adoptDevice duplicates the device that f holds and has what a predecessor took
// and did not answer asked again.
func adoptDevice(f *os.File) (*device, error) {
	fd, err := lifetime.Duplicate(f)
	if err != nil {
		return nil, fmt.Errorf("adopting %s: %w", devicePath, err)
	}
	return &device{fd: fd}, nil
}

// file is a duplicate of the device, for a Keeper.
func (d *device) file() (*os.File, error) {
	fd, err := unix.FcntlInt(uintptr(d.fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("duplicating the cachefiles device: %w", err)
	}
	return os.NewFile(uintptr(fd), devicePath), nil
}

// command says one command. The kernel takes no part of one.
func (d *device) command(text string) error {
	if _, err := unix.Write(d.fd, []byte(text)); err != nil {
		return fmt.Errorf("cachefiles: %q: %w", text, err)
	}
	return nil
}

// copen answers OPEN with the size of the object in bytes.
func (d *device) copen(msg uint32, size int64) error {
	return d.command(fmt.Sprintf("copen %d,%d", msg, size))
}

// refuse answers OPEN with an error.
func (d *device) refuse(msg uint32, errno syscall.Errno) error {
	return d.command(fmt.Sprintf("copen %d,-%d", msg, int(errno)))
}

// read takes a request, none if n is 0. It never blocks.
//
// The kernel makes the descriptor of an OPEN without close-on-exec: no program may
// be started between the two calls.
func (d *device) read(b []byte) (m message, n int, err error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	n, err = unix.Read(d.fd, b)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return message{fd: -1}, 0, nil
	}
	if err != nil || n == 0 {
		return message{fd: -1}, 0, err
	}
	m, err = parseMessage(b[:n])
	if m.fd >= 0 {
		unix.CloseOnExec(m.fd)
	}
	return m, n, err
}

// close lets go of this process's descriptor; the last one of all processes ends
// the cache.
func (d *device) close() error {
	if err := unix.Close(d.fd); err != nil {
		return fmt.Errorf("closing the cachefiles device: %w", err)
	}
	return nil
}

// complete answers READ: what is there now is what there is.
func complete(object *os.File, msg uint32) error {
	err := lifetime.Control(object, func(fd int) error {
		if _, _, no := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), readComplete, uintptr(msg)); no != 0 {
			return no
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("completing read request %d: %w", msg, err)
	}
	return nil
}
