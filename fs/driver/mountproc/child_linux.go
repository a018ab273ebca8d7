package mountproc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/erofs"
	"github.com/lazyerofs/lazyerofs/fs/kernel"
)

// The child never comes to main: a main that forgot to ask would run a second
// time, with all that it does.
func init() {
	if len(os.Args) != 2 || os.Args[0] != Program {
		return
	}
	if err := child(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1) //nolint:forbidigo // this is the main of the child
	}
	os.Exit(0) //nolint:forbidigo // this is the main of the child
}

// child carries an order out and sends the answer. An error means that there was
// nobody to send it to; all that was made goes with the process.
func child(text string) error {
	var o Order
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return fmt.Errorf("reading the order: %w", err)
	}
	var a answer
	mount, err := o.carryOut(&a)
	a.Failure = remote(err)
	b, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("writing the answer: %w", err)
	}
	var rights []byte
	if mount != nil {
		defer mount.Close()
		rights = unix.UnixRights(int(mount.Fd()))
	}
	if err := unix.Sendmsg(socketFD, b, rights, nil, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("sending the answer: %w", err)
	}
	return nil
}

func (o *Order) carryOut(a *answer) (mount *os.File, err error) {
	switch {
	case o.EROFS != nil:
		mount, a.Superblock, err = erofs.Detached(context.Background(), *o.EROFS)
	case o.Context != nil:
		mount, err = o.Context.detached()
	case o.Meet:
		return nil, meet(filesFD)
	default:
		return nil, errors.New("an empty order")
	}
	if err == nil && o.Read != "" {
		if a.Content, err = readBelow(mount, o.Read); err != nil {
			err = errors.Join(err, mount.Close())
			mount = nil
		}
	}
	return mount, err
}

func (c *Context) detached() (*os.File, error) {
	fsc, err := kernel.OpenFS(c.FSType)
	if err != nil {
		return nil, err
	}
	defer fsc.Close()
	for _, o := range c.Options {
		if err := fsc.SetString(o[0], o[1]); err != nil {
			return nil, err
		}
	}
	for _, f := range c.Flags {
		if err := fsc.SetFlag(f); err != nil {
			return nil, err
		}
	}
	if err := fsc.Create(); err != nil {
		return nil, err
	}
	return fsc.Mount(c.Attrs)
}

// readBelow reads a file in the root of a mount that is attached nowhere.
func readBelow(mount *os.File, name string) ([]byte, error) {
	fd, err := unix.Openat(int(mount.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening %s in the mount: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxContent))
	if err != nil {
		return nil, fmt.Errorf("reading %s in the mount: %w", name, err)
	}
	return b, nil
}

// pollName is a file that go-fuse shows in every root and that answers POLL
// with ENOSYS, after which the kernel asks no more on this connection.
const pollName = ".go-fuse-epoll-hack"

// meet lets the kernel ask for the root's attributes and its opening, and once for
// POLL.
func meet(root int) error {
	fd, err := unix.Openat(root, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening the new mount: %w", err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("looking at the new mount: %w", err)
	}
	poll, err := unix.Openat(root, pollName, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("silencing POLL: %w", err)
	}
	defer unix.Close(poll)
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(poll), Events: unix.POLLIN}}, 0); err != nil {
		return fmt.Errorf("silencing POLL: %w", err)
	}
	return nil
}
