package cache

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// tagXattr holds a data file's tag. A copy of the file that leaves extended
// attributes behind is not believed, which is what we want.
const tagXattr = "user.lazyerofs.tag"

// newTag returns a tag that no other file has.
func newTag() tag {
	var t tag
	_, _ = rand.Read(t[:]) // never fails (crypto/rand)
	return t
}

// readTag returns the tag of a data file; ok is false when it has none.
func readTag(f *os.File) (t tag, ok bool, err error) {
	var buf [len(t) + 1]byte
	n, err := unix.Fgetxattr(int(f.Fd()), tagXattr, buf[:])
	switch {
	case err == unix.ENODATA || err == unix.EOPNOTSUPP || err == unix.ERANGE:
		return t, false, nil
	case err != nil:
		return t, false, fmt.Errorf("reading the tag of the data file: %w", err)
	}
	return tag(buf[:len(t)]), n == len(t), nil
}

// writeTag sets the tag of a data file. On a file system without extended
// attributes it does nothing: no bitmap is then ever believed.
func writeTag(f *os.File, t tag) error {
	err := unix.Fsetxattr(int(f.Fd()), tagXattr, t[:], 0)
	if err != nil && err != unix.EOPNOTSUPP {
		return fmt.Errorf("tagging the data file: %w", err)
	}
	return nil
}

// datasync waits until the data of f is on disk.
func datasync(f *os.File) error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); err != unix.EINTR {
			return err
		}
	}
}

// reserve allocates the first n bytes of f, so that a full disk cannot keep the
// bitmap from being written. File systems that cannot are left alone.
func reserve(f *os.File, n int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, n)
	if err == unix.EOPNOTSUPP {
		return nil
	}
	if isNoSpace(err) {
		return fmt.Errorf("reserving the bitmap: %w: %w", ErrNoSpace, err)
	}
	return err
}

func isNoSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

// lockDir opens a layer's directory and takes the lock that says that it is in
// use; closing the file gives it back, as does the death of the process. With
// create a missing directory is made.
func lockDir(dir string, create bool) (*os.File, error) {
	for {
		if create {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return nil, err
			}
		}
		d, err := os.Open(dir)
		if err != nil {
			if create && os.IsNotExist(err) {
				continue // removed in between
			}
			return nil, err
		}
		if err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			if err == unix.EWOULDBLOCK {
				err = ErrInUse
			}
			return nil, errors.Join(fmt.Errorf("locking %s: %w", dir, err), d.Close())
		}
		if sameFile(d, dir) == nil {
			return d, nil
		}
		if err := d.Close(); err != nil { // it was moved away before we had the lock
			return nil, err
		}
	}
}

// sameFile reports as an error that path no longer names f. It looks without
// opening: an open of a marked file would be noticed.
func sameFile(f *os.File, path string) error {
	a, err := f.Stat()
	if err != nil {
		return err
	}
	b, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !os.SameFile(a, b) {
		return fmt.Errorf("the descriptor is of another file than %s", path)
	}
	return nil
}
