package kernel

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// FSContext is a file system being configured (fsopen(2)). Its errors carry
// the errno, for errors.Is, and the messages that the kernel left in the
// context's log, which otherwise nobody reads. Not safe for concurrent use.
type FSContext struct {
	fd     int
	fstype string
}

// OpenFS begins to configure a file system of the type, loading its module if
// need be: ENODEV when there is none. Close must be called.
func OpenFS(fstype string) (*FSContext, error) {
	fd, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen %s: %w", fstype, err)
	}
	return &FSContext{fd: fd, fstype: fstype}, nil
}

// Close drops the context. A mount made from it is not affected.
func (c *FSContext) Close() error { return unix.Close(c.fd) }

// SetString sets key=value. The kernel takes at most 255 bytes of value.
func (c *FSContext) SetString(key, value string) error {
	return c.wrap(key+"="+value, unix.FsconfigSetString(c.fd, key, value))
}

// SetFlag sets an option without value.
func (c *FSContext) SetFlag(key string) error {
	return c.wrap(key, unix.FsconfigSetFlag(c.fd, key))
}

// Create makes or finds the superblock.
func (c *FSContext) Create() error {
	return c.wrap("creating the superblock", unix.FsconfigCreate(c.fd))
}

// Mount returns a descriptor of a detached mount of the created superblock,
// with MOUNT_ATTR_ flags. The mount goes away with the descriptor unless
// move_mount(2) attaches it before.
func (c *FSContext) Mount(attrs int) (*os.File, error) {
	fd, err := unix.Fsmount(c.fd, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return nil, c.wrap("fsmount", err)
	}
	return os.NewFile(uintptr(fd), c.fstype+" mount"), nil
}

// FSError is a step of FSContext that the kernel refused.
type FSError struct {
	// FSType is the file system type, Step the option or operation.
	FSType, Step string
	// Err is the errno; Log what the kernel said about it, one line, or "".
	Err error
	Log string
}

// Error names the step, the errno and the kernel's words.
func (e *FSError) Error() string {
	s := fmt.Sprintf("%s: %s: %v", e.FSType, e.Step, e.Err)
	if e.Log != "" {
		s += " (kernel: " + e.Log + ")"
	}
	return s
}

// Unwrap returns the errno.
func (e *FSError) Unwrap() error { return e.Err }

func (c *FSContext) wrap(step string, err error) error {
	if err == nil {
		return nil
	}
	return &FSError{FSType: c.fstype, Step: step, Err: err, Log: c.log()}
}

// log drains the context's message ring: 8 slots, one message per read, each
// "<severity> <text>\n", ENODATA when empty.
func (c *FSContext) log() string {
	var lines []string
	var buf [1024]byte
	for range 16 {
		n, err := unix.Read(c.fd, buf[:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			break
		}
		s := strings.TrimSpace(string(buf[:n]))
		if len(s) > 2 && s[1] == ' ' {
			s = s[2:]
		}
		lines = append(lines, s)
	}
	return strings.Join(lines, "; ")
}

// openBeneath opens name inside a detached mount.
func openBeneath(mount *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat(int(mount.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening %s in the mount: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// refusal turns a failure of the fsopen family into the three-way answer.
// hints gives the words for the errnos that a kernel without the capability
// answers; the common ones are known already.
func refusal(what string, err error, hints map[unix.Errno]string) error {
	var no unix.Errno
	if !errors.As(err, &no) {
		return fmt.Errorf("%s: %w", what, err)
	}
	if hint, ok := hints[no]; ok {
		return unsupported(what, err, hint)
	}
	switch no {
	case unix.ENOSYS:
		return unsupported(what, err, needFsAPI)
	case unix.EPERM:
		return unsupported(what, err, needAdmin)
	}
	return fmt.Errorf("%s: %w", what, err)
}
