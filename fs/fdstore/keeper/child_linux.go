package keeper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/fdstore"
)

const (
	oomFile = "/proc/self/oom_score_adj"
	// oomScore makes the supervisor the last process that the kernel kills:
	// without it every incomplete mount reads zeros.
	oomScore = "-999"
)

// child is one running daemon.
type child struct {
	pid     int
	pidfd   int // signals go through it: a number could be someone else's by now
	started time.Time
	exit    chan unix.WaitStatus // one value
}

// harden raises the descriptor limit to its maximum, for the shelf and for the
// child, and keeps the OOM killer away, both as far as this process may. It
// returns the OOM score that the child shall have: the one we were given.
func harden() (oom []byte, err error) {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return nil, fmt.Errorf("reading the descriptor limit: %w", err)
	}
	if oom, err = os.ReadFile(oomFile); err != nil {
		return nil, fmt.Errorf("reading the OOM score: %w", err)
	}
	var errs []error
	if lim.Cur < lim.Max {
		lim.Cur = lim.Max
		// Go's own call, so that Go does not give the child the old limit.
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, (*syscall.Rlimit)(&lim)); err != nil {
			errs = append(errs, fmt.Errorf("raising the descriptor limit: %w", err))
		}
	}
	if err := os.WriteFile(oomFile, []byte(oomScore), 0); err != nil {
		errs = append(errs, fmt.Errorf("protecting against the OOM killer: %w", err))
	}
	return oom, errors.Join(errs...)
}

// start runs the binary with the shelf as descriptors 3 and up.
func (s *supervisor) start(ctx context.Context) error {
	fds, names := s.shelf.fds()
	c := &child{pidfd: -1, exit: make(chan unix.WaitStatus, 1)}
	attr := &syscall.ProcAttr{
		Env:   s.environment(len(fds), names),
		Files: append([]uintptr{0, 1, 2}, fds...),
		// Its own group: a terminal's ^C reaches the supervisor only.
		Sys: &syscall.SysProcAttr{Setpgid: true, PidFD: &c.pidfd},
	}
	pid, err := syscall.ForkExec(s.path, s.argv, attr)
	if err != nil {
		return fmt.Errorf("starting %s: %w", s.path, err)
	}
	c.pid, c.started = pid, time.Now()
	s.child, s.lastPID, s.ready = c, pid, false
	if s.oom != nil {
		file := fmt.Sprintf("/proc/%d/oom_score_adj", pid)
		if err := os.WriteFile(file, s.oom, 0); err != nil {
			log.G(ctx).WithError(err).Warn("the daemon keeps the supervisor's OOM score")
		}
	}
	go c.wait()
	return nil
}

// environment is ours, with the descriptor protocol's variables replaced.
func (s *supervisor) environment(n int, names string) []string {
	own := []string{"NOTIFY_SOCKET", "FDSTORE", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES",
		"WATCHDOG_PID", // it names us; without it WATCHDOG_USEC holds for the child
		fdstore.ListenPPID}
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		key, _, _ := strings.Cut(kv, "=")
		return slices.Contains(own, key)
	})
	env = append(env, "NOTIFY_SOCKET="+s.sock.addr.Name, "FDSTORE="+strconv.Itoa(s.opts.Max))
	if n > 0 {
		env = append(env,
			"LISTEN_FDS="+strconv.Itoa(n),
			"LISTEN_FDNAMES="+names,
			fdstore.ListenPPID+"="+strconv.Itoa(os.Getpid()))
	}
	return env
}

// wait collects this one child and no other: a supervisor that is process 1 of
// a container must not steal what others wait for.
func (c *child) wait() {
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(c.pid, &status, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		c.exit <- status
		return
	}
}

func (c *child) signal(ctx context.Context, sig unix.Signal) {
	if err := unix.PidfdSendSignal(c.pidfd, sig, nil, 0); err != nil {
		log.G(ctx).WithError(err).WithField("pid", c.pid).Warn("signalling the daemon")
	}
}

func describe(status unix.WaitStatus) string {
	if status.Signaled() {
		return status.Signal().String()
	}
	return fmt.Sprintf("exit status %d", status.ExitStatus())
}
