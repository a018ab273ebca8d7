package standalone

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Defaults of a root user's instance.
const (
	DefaultRoot    = "/var/lib/lazyerofs/standalone"
	DefaultAddress = "/run/lazyerofs/standalone.sock"
)

// startTimeout bounds the time from fork to a socket that answers.
const startTimeout = 30 * time.Second

// Instance is where one daemon keeps its state and listens.
type Instance struct {
	// Root is the daemon's state directory.
	Root string
	// Address is the path of its gRPC socket.
	Address string
	// CertsDir is where a daemon that is started here finds HOST/hosts.toml.
	CertsDir string
	// Binary is the daemon's executable; empty: lazyerofsd beside this one, then
	// in $PATH.
	Binary string
	// Rootless makes a daemon that is started here serve an ordinary user.
	Rootless bool
}

// Dial connects to a daemon that runs; if none answers the error wraps
// fs.ErrNotExist.
func (i Instance) Dial(ctx context.Context) (*grpc.ClientConn, error) {
	if err := i.Answers(ctx); err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("unix://"+i.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", i.Address, err)
	}
	return conn, nil
}

// Answers reports whether a daemon runs, by connecting; if none does the error
// wraps fs.ErrNotExist. A gRPC client connects in the background and reports late.
func (i Instance) Answers(ctx context.Context) error {
	try, err := new(net.Dialer).DialContext(ctx, "unix", i.Address)
	if errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("no lazyerofs daemon answers at %s: %w: %w", i.Address, fs.ErrNotExist, err)
	}
	if err != nil {
		return fmt.Errorf("connecting to the lazyerofs daemon: %w", err)
	}
	if err := try.Close(); err != nil {
		return fmt.Errorf("connecting to %s: %w", i.Address, err)
	}
	return nil
}

// Untouched reports that no daemon runs and that none was ever started with this
// root: nothing can be mounted.
func (i Instance) Untouched(ctx context.Context) bool {
	_, err := os.Lstat(i.configFile())
	return errors.Is(err, fs.ErrNotExist) && errors.Is(i.Answers(ctx), fs.ErrNotExist)
}

// Ensure connects to the daemon and starts it first when none answers.
func (i Instance) Ensure(ctx context.Context) (*grpc.ClientConn, error) {
	if err := i.Start(ctx); err != nil {
		return nil, err
	}
	return i.Dial(ctx)
}

// Start returns when a daemon answers, and starts one if none does.
func (i Instance) Start(ctx context.Context) error {
	err := i.Answers(ctx)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := i.start(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	_, err = backoff.Retry(ctx, func() (struct{}, error) { return struct{}{}, i.Answers(ctx) },
		backoff.WithBackOff(backoff.NewConstantBackOff(20*time.Millisecond)))
	if err != nil {
		return fmt.Errorf("the lazyerofs daemon did not start; see %s: %w", i.logFile(), err)
	}
	return nil
}

func (i Instance) logFile() string    { return filepath.Join(i.Root, "daemon.log") }
func (i Instance) pidFile() string    { return filepath.Join(i.Root, "supervisor.pid") }
func (i Instance) configFile() string { return filepath.Join(i.Root, "config.toml") }

// daemonConfig is as much of the daemon's configuration as is set here. It is
// strict: a layer that cannot be lazy is an error with its reason, because
// nobody is there to unpack it.
type daemonConfig struct {
	Snapshotter struct {
		Strict bool `toml:"strict"`
	} `toml:"snapshotter"`
	Registry struct {
		CertsDir string `toml:"certs_dir,omitempty"`
	} `toml:"registry"`
}

func (i Instance) writeConfig() error {
	var c daemonConfig
	c.Snapshotter.Strict = true
	c.Registry.CertsDir = i.CertsDir
	b, err := toml.Marshal(c)
	if err != nil {
		return fmt.Errorf("encoding the daemon's configuration: %w", err)
	}
	if err := os.WriteFile(i.configFile(), b, 0o600); err != nil {
		return fmt.Errorf("writing the daemon's configuration: %w", err)
	}
	return nil
}

// binary returns the path of the daemon's executable.
func (i Instance) binary() (string, error) {
	if i.Binary != "" {
		return i.Binary, nil
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "lazyerofsd")
		if unix.Access(beside, unix.X_OK) == nil {
			return beside, nil
		}
	}
	path, err := exec.LookPath("lazyerofsd")
	if err != nil {
		return "", fmt.Errorf("lazyerofsd is neither beside lazyerofs nor in $PATH; install it: %w", err)
	}
	return path, nil
}

// start runs the supervisor in a session of its own and writes down its pid.
func (i Instance) start(ctx context.Context) error {
	bin, err := i.binary()
	if err != nil {
		return err
	}
	for _, dir := range []string{i.Root, filepath.Dir(i.Address)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("making %s for the daemon: %w", dir, err)
		}
	}
	if err := i.writeConfig(); err != nil {
		return err
	}
	logTo, err := os.OpenFile(i.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("opening the daemon's log: %w", err)
	}
	defer logTo.Close()
	args := []string{"--supervise", "--root", i.Root, "--address", i.Address, "--config", i.configFile()}
	if i.Rootless {
		args = append(args, "--rootless")
	}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), bin, args...)
	cmd.Stdout, cmd.Stderr = logTo, logTo
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", bin, err)
	}
	pid := []byte(strconv.Itoa(cmd.Process.Pid) + "\n")
	if err := os.WriteFile(i.pidFile(), pid, 0o600); err != nil {
		return errors.Join(fmt.Errorf("writing down the supervisor's pid: %w", err), cmd.Process.Kill(), cmd.Process.Release())
	}
	return cmd.Process.Release()
}

// Stop tells the supervisor to end, which it does once no incomplete layer is
// mounted. It does not wait. No supervisor is no error.
func (i Instance) Stop() error {
	b, err := os.ReadFile(i.pidFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the supervisor's pid: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return fmt.Errorf("%s holds no process id; remove it", i.pidFile())
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return os.Remove(i.pidFile())
	}
	if err != nil {
		return fmt.Errorf("finding process %d: %w", pid, err)
	}
	defer unix.Close(pidfd)
	if !i.runs(pid) {
		return os.Remove(i.pidFile())
	}
	if err := unix.PidfdSendSignal(pidfd, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("stopping process %d: %w", pid, err)
	}
	return os.Remove(i.pidFile())
}

// AwaitEnd returns when nobody listens at the socket any more: after Stop, when the
// supervisor has ended, which keeps the socket while daemons come and go.
func (i Instance) AwaitEnd(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := i.Answers(ctx)
		switch {
		case err == nil:
			return struct{}{}, errors.New("it still answers")
		case errors.Is(err, fs.ErrNotExist):
			return struct{}{}, nil
		}
		return struct{}{}, backoff.Permanent(err)
	}, backoff.WithBackOff(backoff.NewConstantBackOff(20*time.Millisecond)))
	if err != nil {
		return fmt.Errorf("waiting for the end of the lazyerofs daemon; see %s: %w", i.logFile(), err)
	}
	return nil
}

// runs reports whether process pid was started for this instance: a pid file
// outlives a reboot and its number may be somebody else's by now.
func (i Instance) runs(pid int) bool {
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	return strings.Contains(string(cmdline), "\x00--supervise\x00--root\x00"+i.Root+"\x00")
}
