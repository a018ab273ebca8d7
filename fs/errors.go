package fs

import (
	"context"
	"errors"
	"fmt"

	"github.com/lazyerofs/lazyerofs/fs/cache"
	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/format"
	"github.com/lazyerofs/lazyerofs/fs/remote"
)

// Reasons for which a layer is not mounted, in a word. They go into metrics.
const (
	ReasonSource     = "source"     // labels do not say where the layer is
	ReasonFormat     = "format"     // no format reads it, or it has no chunk index
	ReasonDriver     = "driver"     // this kernel cannot load lazily
	ReasonRegistry   = "registry"   // the registry does not give it
	ReasonCorrupt    = "corrupt"    // it contradicts its digests or breaks the format
	ReasonIdentity   = "identity"   // it is not what the image claims
	ReasonQuarantine = "quarantine" // it was found to be wrong before
	ReasonDisk       = "disk"       // no space for its metadata
	ReasonTimeout    = "timeout"    // it took too long
	ReasonOther      = "other"
)

// ErrNotMounted is the answer of Check for a target that this process does not
// serve.
var ErrNotMounted = errors.New("not mounted by this process")

// ErrClosed marks a call after Close.
var ErrClosed = errors.New("the file system is closed")

// MountError says why a layer is not mounted.
type MountError struct {
	// Reason is one of the Reason words.
	Reason string
	// Err is what happened.
	Err error
}

// Error returns what happened.
func (e *MountError) Error() string { return e.Err.Error() }

// Unwrap returns what happened.
func (e *MountError) Unwrap() error { return e.Err }

// MissReason is the word for metrics.
func (e *MountError) MissReason() string { return e.Reason }

func fail(reason, format string, args ...any) error {
	return &MountError{Reason: reason, Err: fmt.Errorf(format, args...)}
}

// classify gives err the word that its cause calls for.
func classify(err error) error {
	var done *MountError
	if errors.As(err, &done) {
		return err
	}
	var corrupt *chunk.CorruptError
	reason := ReasonOther
	switch {
	case errors.As(err, &corrupt):
		reason = ReasonCorrupt
	case errors.Is(err, format.ErrNotLazy):
		reason = ReasonFormat
	case errors.Is(err, cache.ErrNoSpace):
		reason = ReasonDisk
	case errors.Is(err, context.DeadlineExceeded):
		reason = ReasonTimeout
	case errors.Is(err, remote.ErrNoSource):
		reason = ReasonSource
	case errors.Is(err, remote.ErrUnavailable), errors.Is(err, remote.ErrGone):
		reason = ReasonRegistry
	}
	return &MountError{Reason: reason, Err: err}
}
