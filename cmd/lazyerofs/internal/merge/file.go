package merge

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/lazyerofs/lazyerofs/differ/converter"
)

// create writes a file that appears whole or not at all. What a symbolic link leads to
// is replaced, and not the link.
func create(name string, fill func(io.Writer) error) (err error) {
	at, dir, err := converter.Replaceable(name)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(at)+"-*")
	if err != nil {
		return fmt.Errorf("making %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("writing %s: %w", name, errors.Join(named(err, f.Name(), name), os.Remove(f.Name())))
		}
	}()
	w := bufio.NewWriterSize(f, 1<<20)
	err = fill(w)
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), at)
}

// named returns err about the file that was asked for, if it is about the one that
// becomes it, whose name nobody knows.
func named(err error, temp, name string) error {
	var path *fs.PathError
	if errors.As(err, &path) && path.Path == temp {
		return &fs.PathError{Op: path.Op, Path: name, Err: path.Err}
	}
	return err
}
