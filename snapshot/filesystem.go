package snapshot

import (
	"context"
	"errors"
)

// Filesystem mounts layers. Its methods are called for one target at a time but
// for many targets at once. A target is an existing directory that belongs to
// the call until the matching Unmount.
type Filesystem interface {
	// Mount mounts the layer that labels describe at target, read-only, without
	// downloading it. When target already carries a mount that an earlier process
	// made for the same layer, Mount adopts that mount and leaves it as it is; a
	// layer that was mounted before comes back without the network. Any error is
	// a miss; one that wraps a Misser says why in a word. labels come from outside
	// and must be trusted with nothing.
	Mount(ctx context.Context, target string, labels map[string]string) error
	// MountFile mounts the EROFS image in file, which is complete and was made on
	// this node, at target, read-only. A live mount at target is left as it is.
	MountFile(ctx context.Context, target, file string) error
	// Check reports whether the mount at target can still be used: nil, or an
	// error that says why not. It is local and quick. A target that this process
	// has neither mounted nor adopted is an error.
	Check(ctx context.Context, target string) error
	// Unmount unmounts target, whoever mounted it, and lets go of its layer.
	// Nothing mounted there is not an error. Containers that use the layer
	// through overlayfs keep working.
	Unmount(ctx context.Context, target string) error
}

// Reason is the class of a miss: a word for metrics and for people. The set of
// words is small and fixed.
type Reason string

// Reasons that the snapshotter gives itself; a Filesystem adds its own.
const (
	// ReasonParent: the layer below was unpacked in the same pull.
	ReasonParent Reason = "parent"
	// ReasonRebase: the caller names the parent only at commit, where a hit would
	// lose it.
	ReasonRebase Reason = "rebase"
	// ReasonTimeout: the Filesystem took longer than Prepare may.
	ReasonTimeout Reason = "timeout"
	// ReasonRestore: the layer is known but cannot be mounted again.
	ReasonRestore Reason = "restore"
	// ReasonOther: the Filesystem gave no reason in a word.
	ReasonOther Reason = "other"
)

// Misser is an error that knows its Reason. A Filesystem need not import this
// package to give one.
type Misser interface {
	error
	// MissReason is the class of the miss.
	MissReason() string
}

// MissError says why a layer cannot be loaded lazily.
type MissError struct {
	// Reason is the class.
	Reason Reason
	// Err is what happened.
	Err error
}

// Error returns the class and what happened.
func (e *MissError) Error() string { return string(e.Reason) + ": " + e.Err.Error() }

// Unwrap returns what happened.
func (e *MissError) Unwrap() error { return e.Err }

// MissReason implements Misser.
func (e *MissError) MissReason() string { return string(e.Reason) }

// asMiss gives every error of a Filesystem a class.
func asMiss(err error) *MissError {
	var own *MissError
	if errors.As(err, &own) {
		return own
	}
	var m Misser
	if errors.As(err, &m) {
		return &MissError{Reason: Reason(m.MissReason()), Err: err}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return &MissError{Reason: ReasonTimeout, Err: err}
	}
	return &MissError{Reason: ReasonOther, Err: err}
}
