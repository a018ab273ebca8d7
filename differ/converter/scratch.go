package converter

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
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
	lock, err := lockDir(dir, unix.LOCK_EX|unix.LOCK_NB)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return &scratch{dir: dir, lock: lock}, nil
}

// lockDir locks dir as flock(2) does with these flags.
func lockDir(dir string, how int) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		err = unix.Flock(int(f.Fd()), how)
	}
	if err != nil {
		return nil, errors.Join(&os.PathError{Op: "lock", Path: dir, Err: err}, f.Close())
	}
	return f, nil
}

// sweep removes the directories of processes of this user that ended without Close.
// In a directory that everybody may write to there are those of others.
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
		if err != nil || fi.ModTime().After(before) || !mine(fi) {
			continue
		}
		dir := filepath.Join(parent, n.Name())
		lock, err := lockDir(dir, unix.LOCK_EX|unix.LOCK_NB)
		if err != nil {
			continue
		}
		if err := errors.Join(os.RemoveAll(dir), lock.Close()); err != nil {
			return fmt.Errorf("removing what a killed conversion left: %w", err)
		}
	}
	return nil
}

// mine reports whether a file belongs to the user of this process.
func mine(fi fs.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
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
