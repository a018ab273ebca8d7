package converter

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// scratch is a directory that goes with the process that made it: at Close, or,
// when that was killed, by the next one that makes a directory of the same kind
// in the same place. A lock on the directory says that its maker lives.
type scratch struct {
	dir  string
	lock *os.File
}

// scratchAge is how long a directory without a lock is left alone: its maker may
// just be about to lock it.
const scratchAge = time.Minute

// newScratch makes a directory in parent (the system's directory for temporary
// files when it is empty), whose name starts with prefix.
func newScratch(parent, prefix string) (*scratch, error) {
	if parent == "" {
		parent = os.TempDir()
	}
	if err := sweep(parent, prefix, time.Now().Add(-scratchAge)); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(parent, prefix)
	if err != nil {
		return nil, err
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return &scratch{dir: dir, lock: lock}, nil
}

// lockDir locks dir, or fails at once.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(&os.PathError{Op: "lock", Path: dir, Err: err}, f.Close())
	}
	return f, nil
}

// sweep removes the directories of processes that ended without Close. What
// cannot be locked or read is somebody else's.
func sweep(parent, prefix string, before time.Time) error {
	names, err := os.ReadDir(parent)
	if err != nil {
		return err
	}
	for _, n := range names {
		if !n.IsDir() || !strings.HasPrefix(n.Name(), prefix) {
			continue
		}
		fi, err := n.Info()
		if err != nil || fi.ModTime().After(before) {
			continue
		}
		dir := filepath.Join(parent, n.Name())
		lock, err := lockDir(dir)
		if err != nil {
			continue
		}
		if err := errors.Join(os.RemoveAll(dir), lock.Close()); err != nil {
			return fmt.Errorf("removing what a killed conversion left: %w", err)
		}
	}
	return nil
}

// Close removes the directory. It may be called again, and on nil.
func (s *scratch) Close() error {
	if s == nil || s.lock == nil {
		return nil
	}
	err := errors.Join(os.RemoveAll(s.dir), s.lock.Close())
	s.lock = nil
	return err
}
