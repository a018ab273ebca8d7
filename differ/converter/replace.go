package converter

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// maxLinks is how many symbolic links are followed to a file, as the kernel does.
const maxLinks = 40

// PlaceError is about what is there already where something was to be written.
type PlaceError struct {
	// Name is the place as it was given, Problem what follows it in the sentence.
	Name, Problem string
}

// Error names the place and what is wrong with it.
func (e *PlaceError) Error() string { return e.Name + " " + e.Problem }

// kind is what a file that is not regular is called.
func kind(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "directory"
	case m&fs.ModeDevice != 0:
		return "device"
	case m&fs.ModeNamedPipe != 0:
		return "pipe"
	case m&fs.ModeSocket != 0:
		return "socket"
	}
	return "special file"
}

// Replaceable returns the file that is replaced by writing to name, where its symbolic
// links lead to, whether that exists or not, and the directory that it is in. Anything
// but a regular file is a *PlaceError.
func Replaceable(name string) (file, dir string, err error) {
	st, err := os.Stat(name) // of links as in /proc, too, which lead to no path
	switch {
	case err == nil && !st.Mode().IsRegular():
		return "", "", &PlaceError{name, "is a " + kind(st.Mode()) + ", which is not replaced; name a regular file, or one that does not exist yet"}
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return "", "", fmt.Errorf("looking at %s: %w", name, err)
	}
	at := name
	for range maxLinks {
		to, err := os.Readlink(at)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EINVAL) {
			return at, parent(at), nil // there is nothing, or no link
		}
		if err != nil {
			return "", "", fmt.Errorf("following %s: %w", name, err)
		}
		if !filepath.IsAbs(to) {
			to = parent(at) + "/" + to
		}
		at = to
	}
	return "", "", fmt.Errorf("following %s: %w", name, syscall.ELOOP)
}

// parent returns the directory that name is in. Unlike filepath.Dir it does not take
// ".." for what stands before it, which may be a symbolic link.
func parent(name string) string {
	if dir, _ := filepath.Split(name); dir != "" {
		return dir
	}
	return "."
}
