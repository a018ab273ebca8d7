package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/lazyerofs/lazyerofs/differ/converter"
)

// spaceError is one sentence about a disk or a quota that is full.
type spaceError struct {
	text  string
	cause error
}

func (e *spaceError) Error() string { return e.text }

// Unwrap gives the exit code its reason.
func (e *spaceError) Unwrap() []error { return []error{converter.ErrNoSpace, e.cause} }

// ofSpace makes a sentence of an error about a full disk, as the converter does of its
// own. workDir is where temporary data goes, "" for the system's place.
func ofSpace(err error, workDir string) error {
	var known *spaceError
	if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) || errors.As(err, &known) {
		return err
	}
	if workDir == "" {
		workDir = os.TempDir()
	}
	where, hint := "the disk", "free some"
	var path *fs.PathError
	if errors.As(err, &path) {
		where += " that holds " + path.Path
		if in, rerr := filepath.Rel(workDir, path.Path); rerr == nil && filepath.IsLocal(in) {
			hint += ", or name a directory on another disk with --work-dir"
		}
	}
	return &spaceError{fmt.Sprintf("no space left on %s; %s", where, hint), err}
}
