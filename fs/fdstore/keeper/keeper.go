package keeper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/containerd/log"
	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/fdstore"
)

// Options tune Run; the zero value is what lazyerofsd uses.
type Options struct {
	// Dir is where the notify socket is made; empty means /run.
	Dir string
	// Max is the largest number of stored descriptors; 0 means 16384.
	Max int
	// StopTimeout is when a child that ignores SIGTERM gets SIGKILL; 0 means 60 s.
	StopTimeout time.Duration
}

func (o *Options) defaults() {
	if o.Dir == "" {
		o.Dir = "/run"
	}
	if o.Max == 0 {
		o.Max = 16384
	}
	if o.StopTimeout == 0 {
		o.StopTimeout = time.Minute
	}
}

// Delays between two starts. They grow from the first to the second while children
// die before they are ready. A child that was ready has readers that wait: its
// successor starts at once, but no sooner than minDelay after its own start. While
// descriptors are stored, readers may wait too, and no delay is above waitedFor.
const (
	minDelay = 100 * time.Millisecond
	maxDelay = 5 * time.Second

	waitedFor = time.Second
)

// ErrNeverReady reports a child that exited before it was ready for the first
// time, with nothing stored.
var ErrNeverReady = errors.New("the daemon exited before it was ready")

// supervisor is the state of one Run, owned by its one loop.
type supervisor struct {
	opts    Options
	path    string
	argv    []string
	oom     []byte // the OOM score of the child; nil: not known
	sock    *socket
	shelf   shelf
	backoff *backoff.ExponentialBackOff

	child     *child // nil: none runs
	lastPID   int
	ready     bool // this child said so
	everReady bool
	stopping  bool // told to stop: no restart
	again     bool // told to replace the child: restart at once
	restart   <-chan time.Time
	kill      <-chan time.Time
}

// Run starts argv and keeps it running until it is told to stop by a signal or
// by ctx; argv[0] is the path of the binary, which is looked at anew for every
// start. It returns nil once the child is gone and nothing is stored.
func Run(ctx context.Context, argv []string, opts Options) error {
	opts.defaults()
	if len(argv) == 0 {
		return errors.New("supervising: no command given")
	}
	path, err := filepath.Abs(argv[0])
	if err != nil {
		return fmt.Errorf("supervising %s: %w", argv[0], err)
	}
	oom, err := harden()
	if err != nil {
		log.G(ctx).WithError(err).Warn("the supervisor is not protected as it should be")
	}
	sock, err := listen(opts.Dir)
	if err != nil {
		return err
	}
	bo := backoff.NewExponentialBackOff()
	bo.InitialInterval, bo.MaxInterval, bo.Multiplier, bo.RandomizationFactor = minDelay, maxDelay, 2, 0
	s := &supervisor{
		opts: opts, path: path, argv: argv, oom: oom, sock: sock,
		shelf: shelf{max: opts.Max}, backoff: bo,
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGUSR2)
	defer signal.Stop(signals)
	err = s.loop(ctx, signals)
	return errors.Join(err, s.shelf.close(), sock.close())
}

// loop is the whole life of the supervisor.
func (s *supervisor) loop(ctx context.Context, signals <-chan os.Signal) error {
	if err := s.start(ctx); err != nil {
		return err
	}
	cancelled := ctx.Done()
	for {
		if s.child == nil && s.restart == nil && s.stopping {
			if s.shelf.guards() == 0 {
				return nil
			}
			s.hold(ctx)
		}
		select {
		case p := <-s.sock.packets:
			s.deliver(ctx, p)
		case status := <-s.exited():
			if err := s.reap(ctx, status); err != nil {
				return err
			}
		case sig := <-signals:
			s.signalled(ctx, sig)
		case <-cancelled:
			cancelled = nil
			s.stop(ctx)
		case <-s.restart:
			s.restart = nil
			if err := s.start(ctx); err != nil {
				s.later(ctx, s.backoff.NextBackOff(), err)
			}
		case <-s.kill:
			s.kill = nil
			log.G(ctx).Warn("the daemon did not stop in time, killing it")
			s.child.signal(ctx, unix.SIGKILL)
		}
	}
}

func (s *supervisor) exited() <-chan unix.WaitStatus {
	if s.child == nil {
		return nil
	}
	return s.child.exit
}

// hold says, once per stop, why the supervisor stays.
func (s *supervisor) hold(ctx context.Context) {
	s.stopping = false // the loop now waits for a signal
	_, names := s.shelf.fds()
	text := fmt.Sprintf("stopped, but %d stored descriptors guard mounted layers; "+
		"send SIGHUP to start the daemon again", s.shelf.guards())
	log.G(ctx).WithField("names", names).Warn(text)
	s.outer(ctx, fdstore.Message{Status: text})
}

func (s *supervisor) signalled(ctx context.Context, sig os.Signal) {
	switch sig {
	case unix.SIGHUP, unix.SIGUSR2:
		s.stopping = false
		if s.child == nil {
			s.restart = time.After(0)
			return
		}
		s.again = true
		s.terminate(ctx)
	default:
		s.stop(ctx)
	}
}

func (s *supervisor) stop(ctx context.Context) {
	s.stopping, s.again, s.restart = true, false, nil
	s.outer(ctx, fdstore.Message{Stopping: true})
	if s.child != nil {
		s.terminate(ctx)
	}
}

func (s *supervisor) terminate(ctx context.Context) {
	s.child.signal(ctx, unix.SIGTERM)
	if s.kill == nil {
		s.kill = time.After(s.opts.StopTimeout)
	}
}

// reap acts on the death of the child.
func (s *supervisor) reap(ctx context.Context, status unix.WaitStatus) error {
	wait := minDelay - time.Since(s.child.started)
	if err := closeFD(s.child.pidfd); err != nil {
		log.G(ctx).WithError(err).Warn("letting go of the daemon")
	}
	s.child, s.kill = nil, nil
	s.drain(ctx)
	switch {
	case s.stopping:
		return nil
	case s.again:
		s.again = false
		s.restart = time.After(0)
		return nil
	case !s.everReady && s.shelf.guards() == 0 && status.Exited() && status.ExitStatus() != 0:
		return fmt.Errorf("%s: exit status %d: %w", s.path, status.ExitStatus(), ErrNeverReady)
	}
	if s.ready {
		s.backoff.Reset()
	} else {
		wait = s.backoff.NextBackOff()
	}
	s.later(ctx, max(0, wait), fmt.Errorf("the daemon died: %s", describe(status)))
	return nil
}

// later starts the child again after delay.
func (s *supervisor) later(ctx context.Context, delay time.Duration, why error) {
	if len(s.shelf.items) > 0 {
		delay = min(delay, waitedFor)
	}
	log.G(ctx).WithError(why).WithField("delay", delay).Error("starting the daemon again")
	s.restart = time.After(delay)
}

// drain acts on what the dead child had sent, so that its successor inherits it.
func (s *supervisor) drain(ctx context.Context) {
	if err := s.sock.knock(); err != nil {
		log.G(ctx).WithError(err).Error("what the daemon last stored may be late")
		return
	}
	for p := range s.sock.packets {
		if p.pid == os.Getpid() {
			return
		}
		s.deliver(ctx, p)
	}
}

// deliver acts on one packet if the child sent it.
func (s *supervisor) deliver(ctx context.Context, p packet) {
	if p.err == nil && p.pid != s.lastPID {
		p.err = fmt.Errorf("process %d is not the daemon", p.pid)
		p.drop()
	}
	if p.err != nil {
		log.G(ctx).WithError(p.err).Warn("notification refused")
		return
	}
	if err := s.shelf.apply(p.msg, p.fds); err != nil {
		log.G(ctx).WithError(err).Error("descriptor store")
	}
	s.ready = s.ready || p.msg.Ready
	s.everReady = s.everReady || s.ready
	// Only what the service manager above us may act on: a restart of the child
	// is none of its business, so no STOPPING.
	s.outer(ctx, fdstore.Message{Ready: p.msg.Ready, Watchdog: p.msg.Watchdog, Status: p.msg.Status})
}

// outer passes a notification to the service manager that started us, if any.
func (s *supervisor) outer(ctx context.Context, m fdstore.Message) {
	text := m.String()
	if text == "" {
		return
	}
	if _, err := daemon.SdNotify(false, text); err != nil {
		log.G(ctx).WithError(err).Debug("notifying the service manager")
	}
}
