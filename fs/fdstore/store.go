package fdstore

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// ListenPPID is the variable in which our supervisor writes its own process id
// instead of LISTEN_PID: a parent cannot know its child's id before the child
// has its environment, and Go runs nothing between fork and exec.
const ListenPPID = "LAZYEROFS_LISTEN_PPID"

// ListenerName is the name under which a listening socket is kept, and under which a
// service manager's socket unit hands one over (FileDescriptorName=). It guards no
// mount, so a keeper need not stay for it.
const ListenerName = "listener"

// keeperTimeout bounds the wait for a keeper. Ours answers in microseconds,
// systemd in milliseconds; one that needs longer is stopped or dead.
const keeperTimeout = 10 * time.Second

// ErrNoKeeper reports that nobody keeps descriptors for this process.
var ErrNoKeeper = errors.New("no descriptor store: $NOTIFY_SOCKET is not set; " +
	"run under systemd or with --supervise")

// ErrNotKept reports a service manager that takes notifications and no
// descriptors, or that does not say so.
var ErrNotKept = errors.New("the service manager keeps no descriptors ($FDSTORE is not set): " +
	"set FileDescriptorStoreMax and FileDescriptorStorePreserve under systemd 254 or newer, or run with --supervise")

// ErrFull reports that the keeper would drop one more descriptor.
var ErrFull = errors.New("descriptor store is full; raise FileDescriptorStoreMax")

// Store is the store of this process. It is safe for concurrent use.
type Store struct {
	path string

	mu    sync.Mutex
	max   int            // 0: the keeper keeps nothing
	names map[string]int // descriptors that the keeper holds, by name
}

// New returns the store behind $NOTIFY_SOCKET, or ErrNoKeeper. It talks to
// nobody yet.
func New() (*Store, error) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil, ErrNoKeeper
	}
	s := &Store{
		path:  path,
		names: map[string]int{},
	}
	// systemd sets $FDSTORE from 254 on, if it keeps descriptors. Before that it
	// drops them when the unit stops, and a unit without a store drops them at
	// once; neither tells.
	if n, err := strconv.Atoi(os.Getenv("FDSTORE")); err == nil && n > 0 {
		s.max = n
	}
	return s, nil
}

// Keeps returns nil when the keeper takes descriptors, else ErrNotKept.
func (s *Store) Keeps() error {
	if s.max == 0 {
		return ErrNotKept
	}
	return nil
}

// Inherited returns, by name, the descriptors that a predecessor stored; the
// keeper holds its copies until Remove. It must be called once, before anything
// opens files: it claims descriptors 3 and up as LISTEN_FDS says, sets their
// close-on-exec flag and clears the variables.
func (s *Store) Inherited() map[string][]*os.File {
	if ppid, err := strconv.Atoi(os.Getenv(ListenPPID)); err == nil && ppid == os.Getppid() {
		// Setenv fails for malformed keys only.
		_ = os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	}
	_ = os.Unsetenv(ListenPPID)
	files := map[string][]*os.File{}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range activation.Files(true) {
		files[f.Name()] = append(files[f.Name()], f)
		s.names[f.Name()]++
	}
	return files
}

// Put stores a duplicate of f under name and returns when the keeper has it.
// The caller keeps f. Several descriptors may share a name; the same open file
// twice is kept once.
func (s *Store) Put(name string, f *os.File) error {
	if err := CheckName(name); err != nil {
		return fmt.Errorf("storing a descriptor: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.max == 0 {
		return fmt.Errorf("storing descriptor %s: %w", name, ErrNotKept)
	}
	if s.count() >= s.max {
		return fmt.Errorf("storing descriptor %s, %d kept: %w", name, s.count(), ErrFull)
	}
	// FDPOLL=0: an EPOLLHUP must not make systemd drop what guards a mount.
	m := Message{Store: true, NoPoll: true, Name: name}
	if err := s.send(m, f); err != nil {
		return fmt.Errorf("storing descriptor %s: %w", name, err)
	}
	if err := s.Barrier(); err != nil {
		return fmt.Errorf("storing descriptor %s: %w", name, err)
	}
	s.names[name]++
	return nil
}

func (s *Store) count() int {
	n := 0
	for _, c := range s.names {
		n += c
	}
	return n
}

// Remove drops everything stored under name and returns when it is gone. A name
// that is not stored is no error.
func (s *Store) Remove(name string) error {
	if err := CheckName(name); err != nil {
		return fmt.Errorf("removing a stored descriptor: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.send(Message{Remove: true, Name: name}, nil); err != nil {
		return fmt.Errorf("removing stored descriptor %s: %w", name, err)
	}
	if err := s.Barrier(); err != nil {
		return fmt.Errorf("removing stored descriptor %s: %w", name, err)
	}
	delete(s.names, name)
	return nil
}

// Barrier returns once the keeper has acted on everything sent before.
func (s *Store) Barrier() error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("making the pipe of a barrier: %w", err)
	}
	defer func() { _ = r.Close() }()
	err = s.send(Message{Barrier: true}, w)
	_ = w.Close() // the keeper's copy is the only one now
	if err != nil {
		return err
	}
	if err := r.SetReadDeadline(time.Now().Add(keeperTimeout)); err != nil {
		return fmt.Errorf("bounding a barrier: %w", err)
	}
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("waiting for the keeper of descriptors at %s: %w", s.path, err)
	}
	return nil
}

// send writes one datagram with f, which may be nil, attached. It makes the
// system calls itself: net refuses rights on a connected datagram socket, and
// binding one would need a name.
func (s *Store) send(m Message, f *os.File) error {
	if f == nil {
		return s.sendmsg(m, nil)
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	// Control, not Fd: Fd would make the shared file description blocking.
	err = raw.Control(func(fd uintptr) {
		sendErr = s.sendmsg(m, unix.UnixRights(int(fd)))
	})
	return errors.Join(err, sendErr)
}

func (s *Store) sendmsg(m Message, rights []byte) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("making a socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	limit := unix.NsecToTimeval(int64(keeperTimeout))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit); err != nil {
		return fmt.Errorf("bounding a send: %w", err)
	}
	to := &unix.SockaddrUnix{Name: s.path}
	for {
		err = unix.Sendmsg(fd, []byte(m.String()), rights, to, 0)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("reaching the keeper of descriptors at %s: %w", s.path, err)
	}
	return nil
}

// Ready tells the service manager that the daemon serves.
func (s *Store) Ready(status string) error {
	return s.notify(Message{Ready: true, Status: status})
}

// Stopping tells the service manager that the daemon goes down on purpose.
func (s *Store) Stopping() error { return s.notify(Message{Stopping: true}) }

// Watchdog tells the service manager that the daemon is alive.
func (s *Store) Watchdog() error { return s.notify(Message{Watchdog: true}) }

// Status shows a line of text in systemctl status.
func (s *Store) Status(text string) error { return s.notify(Message{Status: text}) }

func (s *Store) notify(m Message) error {
	if _, err := daemon.SdNotify(false, m.String()); err != nil {
		return fmt.Errorf("notifying the service manager: %w", err)
	}
	return nil
}
