package lifetime

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Control runs f with the descriptor of file, which stays open meanwhile. Unlike
// os.File.Fd it does not make the open file blocking, which others may share.
func Control(file *os.File, f func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

// Duplicate returns a new descriptor, closed on exec, of the same open file.
func Duplicate(file *os.File) (fd int, err error) {
	err = Control(file, func(n int) error {
		fd, err = unix.FcntlInt(uintptr(n), unix.F_DUPFD_CLOEXEC, 3)
		return err
	})
	if err != nil {
		return -1, fmt.Errorf("duplicating %s: %w", file.Name(), err)
	}
	return fd, nil
}

// DuplicateFile is Duplicate with the same name.
func DuplicateFile(file *os.File) (*os.File, error) {
	fd, err := Duplicate(file)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), file.Name()), nil
}

// Path is a path by which the kernel opens the file anew, for this process and while
// file is open.
func Path(file *os.File) (path string, err error) {
	err = Control(file, func(fd int) error {
		path = fmt.Sprintf("/proc/self/fd/%d", fd)
		return nil
	})
	return path, err
}

// Paths are those of a layer's files as the kernel's EROFS wants them: the source, and
// the devices. meta is nil where data holds all.
func Paths(data, meta *os.File) (source string, devices []string, err error) {
	source, err = Path(data)
	if err != nil || meta == nil {
		return source, nil, err
	}
	at, err := Path(meta)
	return at, []string{source}, err
}
