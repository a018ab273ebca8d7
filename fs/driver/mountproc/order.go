package mountproc

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/erofs"
	"github.com/lazyerofs/lazyerofs/fs/kernel"
)

// Program is the name (argv[0]) under which the child runs.
const Program = "lazyerofs-mount"

// Descriptors of the child beyond the standard ones.
const (
	socketFD = 3 // where the answer goes
	filesFD  = 4 // the first of Order.Files
)

// Order says what the child is to do. One of EROFS, Context and Meet is set.
type Order struct {
	// EROFS makes a superblock from files and a detached mount of it. Target is
	// not used; Source and Devices are paths for the child, see Path.
	EROFS *erofs.MountConfig `json:",omitempty"`
	// Context makes a superblock by its options, and a detached mount of it.
	Context *Context `json:",omitempty"`
	// Meet asks about the directory that is the first file, see Meet.
	Meet bool `json:",omitempty"`
	// Read is a file in the root of the new mount whose content is wanted too.
	Read string `json:",omitempty"`

	// Files are what the child gets; Path names them.
	Files []*os.File `json:"-"`
	// Abort, if set, is called when the context ends before the child: it must end
	// what the child waits for.
	Abort func() error `json:"-"`
}

// Context is a superblock by its options.
type Context struct {
	FSType  string
	Options [][2]string // in this order
	Flags   []string
	Attrs   int // MOUNT_ATTR_ flags of the mount
}

// Path is the path, for the child, of Order.Files[i].
func Path(i int) string { return fmt.Sprintf("/proc/self/fd/%d", filesFD+i) }

// answer is what the child says. The mount's descriptor comes with it.
type answer struct {
	Superblock string       `json:",omitempty"`
	Content    []byte       `json:",omitempty"`
	Failure    *RemoteError `json:",omitempty"`
}

// maxAnswer bounds an answer in bytes, maxContent what a child reads of a file.
const (
	maxAnswer  = 64 << 10
	maxContent = 32 << 10
)

func parseAnswer(b []byte) (answer, error) {
	var a answer
	if err := json.Unmarshal(b, &a); err != nil {
		return a, fmt.Errorf("the answer of %s: %w", Program, err)
	}
	return a, nil
}

// RemoteError is an error of the child. It is, for errors.Is, what the child's
// was: an errno, kernel.ErrNotSupported and erofs.ErrNeedsBlockDevice.
type RemoteError struct {
	// Text is the child's message.
	Text string
	// Errno is 0 if the error has none.
	Errno unix.Errno `json:",omitempty"`
	// NotSupported and NeedsBlockDevice say which errors it wraps.
	NotSupported, NeedsBlockDevice bool `json:",omitempty"`
}

// Error returns the child's message.
func (e *RemoteError) Error() string { return e.Text }

// Unwrap returns what the error is.
func (e *RemoteError) Unwrap() []error {
	var list []error
	if e.Errno != 0 {
		list = append(list, e.Errno)
	}
	if e.NotSupported {
		list = append(list, kernel.ErrNotSupported)
	}
	if e.NeedsBlockDevice {
		list = append(list, erofs.ErrNeedsBlockDevice)
	}
	return list
}

func remote(err error) *RemoteError {
	if err == nil {
		return nil
	}
	e := &RemoteError{
		Text:             err.Error(),
		NotSupported:     errors.Is(err, kernel.ErrNotSupported),
		NeedsBlockDevice: errors.Is(err, erofs.ErrNeedsBlockDevice),
	}
	errors.As(err, &e.Errno)
	return e
}
