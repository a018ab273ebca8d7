package fusesession

import (
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// pollName is a file that go-fuse shows in every root and that answers POLL
// with ENOSYS, after which the kernel asks no more on this connection.
const pollName = ".go-fuse-epoll-hack"

// silencePoll makes the kernel ask for POLL once. A Go process that opens a file
// of the mount hands it to the runtime's poller, which then waits in the kernel
// for an answer to POLL. Should this process do so, the requests, for which the
// poller waits too, would never be taken.
//
// The opcode may also reach us before, from another process; it does no harm
// there. A successor finds the connection silenced.
func (s *Session) silencePoll() error {
	root := s.Tree()
	if root == "" {
		root = s.target
	}
	fd, err := unix.Open(filepath.Join(root, pollName), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("silencing POLL: %w", err)
	}
	defer unix.Close(fd)
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0); err != nil {
		return fmt.Errorf("silencing POLL: %w", err)
	}
	return nil
}
