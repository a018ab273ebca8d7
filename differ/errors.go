package differ

import (
	"errors"
	"fmt"
	"io"
)

// ErrTruncated reports a layer that ends inside an entry or inside a compressed
// stream. It is wrapped; the fix is to fetch or to build the layer again.
var ErrTruncated = errors.New("layer is truncated")

// EntryError reports a tar entry that cannot be part of a layer. It is
// permanent for that tar.
type EntryError struct {
	// Name is the entry's name as the tar has it.
	Name string
	// Reason says which rule the entry breaks.
	Reason string
}

// Error returns one sentence that names the entry and the rule it breaks.
func (e *EntryError) Error() string {
	return fmt.Sprintf("tar entry %q %s", e.Name, e.Reason)
}

// LimitError reports a layer that needs more than any may have. It is permanent for
// that layer.
type LimitError struct {
	// What says of what the layer has too much.
	What string
	// Most is how much a layer may have of it.
	Most int64
}

// Error returns one sentence that says what the layer has too much of.
func (e *LimitError) Error() string {
	return fmt.Sprintf("layer has more than %d %s, the most that a layer may have", e.Most, e.What)
}

func badEntry(name, format string, args ...any) error {
	return &EntryError{Name: name, Reason: fmt.Sprintf(format, args...)}
}

// readError gives a read error of the input its meaning: a stream that ends too
// early is reported as ErrTruncated whatever the decoder calls it.
func readError(doing string, err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: %w", doing, ErrTruncated)
	}
	return fmt.Errorf("%s: %w", doing, err)
}
