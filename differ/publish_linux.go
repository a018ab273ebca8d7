package differ

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// errNamed reports a file system on which files have names from the start.
var errNamed = errors.New("no nameless files here")

// nameless is what the Name of a file without one ends in.
const nameless = "/(nameless)"

// createNameless creates a file without a name in dir.
func createNameless(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) {
		return nil, errNamed
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(fd), dir+nameless), nil
}

// giveName puts f at name, in place of what is there.
func giveName(f *os.File, name string) error {
	if filepath.Base(f.Name()) != filepath.Base(nameless) {
		return os.Rename(f.Name(), name)
	}
	link := func(to string) error {
		if err := unix.Linkat(unix.AT_FDCWD, procPath(f), unix.AT_FDCWD, to, unix.AT_SYMLINK_FOLLOW); err != nil {
			return &os.LinkError{Op: "link", Old: f.Name(), New: to, Err: err}
		}
		return nil
	}
	err := link(name)
	if !errors.Is(err, os.ErrExist) {
		return err
	}
	temp := name + ".new" // only whole files ever have this name
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := link(temp); err != nil {
		return err
	}
	if err := os.Rename(temp, name); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return nil
}
