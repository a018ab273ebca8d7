package mountproc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxChildren is how many children run at once. They wait for us more than they
// work; each has some megabytes of memory.
const maxChildren = 16

var slots = make(chan struct{}, maxChildren)

// Made is what a child made.
type Made struct {
	// Mount is a mount that is attached nowhere; nil for Meet. It goes away with
	// this descriptor, unless erofs.Attach comes before.
	Mount *os.File
	// Superblock is the name of an EROFS, for erofs.SuperblockAlive.
	Superblock string
	// Content is that of Order.Read.
	Content []byte
}

// Run has a child carry out the order and waits for its end. When ctx ends before,
// Abort frees the child; without it Run waits on. The error is a RemoteError, or
// says that there was no child or no answer.
func Run(ctx context.Context, o Order) (Made, error) {
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	case <-ctx.Done():
		return Made{}, ctx.Err()
	}
	text, err := json.Marshal(o)
	if err != nil {
		return Made{}, fmt.Errorf("writing an order: %w", err)
	}
	ours, theirs, err := sockets()
	if err != nil {
		return Made{}, err
	}
	defer ours.Close()
	var words bytes.Buffer
	cmd := command(string(text), append([]*os.File{theirs}, o.Files...), &words)
	err = cmd.Start()
	_ = theirs.Close() // or our end would never see the child's
	if err != nil {
		return Made{}, fmt.Errorf("starting %s: %w", Program, err)
	}
	left := o.watch(ctx)
	made, err := receive(ours)
	if werr := cmd.Wait(); err != nil {
		err = errors.Join(err, werr)
		if s := strings.TrimSpace(words.String()); s != "" {
			err = fmt.Errorf("%w: %s", err, s)
		}
	}
	err = errors.Join(left(), err)
	if err != nil && made.Mount != nil {
		err = errors.Join(err, made.Mount.Close())
		made.Mount = nil
	}
	return made, err
}

// watch aborts when ctx ends. What it returns ends the watch and says whether it
// did: an abort that came later could hit another connection of the same number.
func (o *Order) watch(ctx context.Context) (left func() error) {
	ended, aborted := make(chan struct{}), make(chan error, 1)
	go func() {
		select {
		case <-ended:
			aborted <- nil
		case <-ctx.Done():
			err := ctx.Err()
			if o.Abort != nil {
				err = errors.Join(err, o.Abort())
			}
			aborted <- err
		}
	}()
	return func() error {
		close(ended)
		return <-aborted
	}
}

// command is the child. Signals of a terminal are not for it, and it does not die
// with the thread that started it.
func command(text string, files []*os.File, words io.Writer) *exec.Cmd {
	return &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{Program, text},
		// It is small and ends soon; in a test with the race detector too.
		Env:         []string{"GOMAXPROCS=1", "GOGC=off", "GORACE=atexit_sleep_ms=0"},
		ExtraFiles:  files,
		Stderr:      words,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
}

// sockets are the two ends of a channel of messages.
func sockets() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making a socket for %s: %w", Program, err)
	}
	theirs = os.NewFile(uintptr(fds[1]), Program)
	mine := os.NewFile(uintptr(fds[0]), Program)
	defer mine.Close()
	conn, err := net.FileConn(mine)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("making a socket for %s: %w", Program, err), theirs.Close())
	}
	ours, ok := conn.(*net.UnixConn)
	if !ok { // a Unix socket is one
		return nil, nil, errors.Join(fmt.Errorf("a socket of type %T", conn), conn.Close(), theirs.Close())
	}
	return ours, theirs, nil
}

// receive waits for the answer. A child that ends without one gives io.EOF.
func receive(conn *net.UnixConn) (Made, error) {
	b := make([]byte, maxAnswer)
	oob := make([]byte, unix.CmsgSpace(4))
	n, noob, _, _, err := conn.ReadMsgUnix(b, oob)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return Made{}, fmt.Errorf("waiting for %s: %w", Program, err)
	}
	mount, err := mountIn(oob[:noob])
	if err != nil {
		return Made{}, err
	}
	a, err := parseAnswer(b[:n])
	if err == nil && a.Failure != nil {
		err = a.Failure
	}
	return Made{Mount: mount, Superblock: a.Superblock, Content: a.Content}, err
}

// mountIn takes the descriptor out of a control message, if there is one.
func mountIn(oob []byte) (*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("reading the answer of %s: %w", Program, err)
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil || len(fds) == 0 {
			continue
		}
		return os.NewFile(uintptr(fds[0]), "mount"), nil
	}
	return nil, nil
}

// Meet lets the kernel ask the server of a new FUSE mount, whose root directory
// is given (O_PATH is enough), for what every user of the mount makes it ask:
// the root's attributes and its opening, and POLL once, which is answered with
// ENOSYS and then never asked again.
//
// Who looks for a mount by stat(2), as a successor of this process may, must get an
// answer also while nobody serves; the kernel keeps those answers as long as the
// server said. And a Go process that opens a file of the mount hands it to the
// runtime's poller, which waits in the kernel for an answer to POLL. Should the
// server do so, its own requests, for which the poller waits too, would never be
// taken.
func Meet(ctx context.Context, root *os.File, abort func() error) error {
	_, err := Run(ctx, Order{Meet: true, Files: []*os.File{root}, Abort: abort})
	return err
}
