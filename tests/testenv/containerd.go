package testenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ContainerdOptions are what may differ between two private containerds.
type ContainerdOptions struct {
	Daemon *Daemon // its proxy plugins are configured; nil for none
	State  string  // a directory from NewState; "" makes one
	Config table   // merged over the rest of the configuration, may be nil
	// Binary is instead of the pinned containerd: one with lazyerofs in it.
	Binary string
	// Supervise runs it under our own keeper of descriptors.
	Supervise bool
}

// Containerd is a containerd of our own, with its shims and containers.
type Containerd struct {
	Address   string // of its gRPC socket
	Namespace string // ours alone: runc and cgroups name their things after it

	dir, state string
	ctr        string
	command    []string
	proc       *process
}

// NewState makes a directory for sockets and mounts: a socket's path holds 107
// bytes, and the directories that tests get are longer.
func NewState() (string, error) {
	dir, err := os.MkdirTemp("/run", "lazyerofs-test-")
	if err != nil {
		return "", fmt.Errorf("making a directory for sockets: %w", err)
	}
	return dir, nil
}

// ContainerdAddress is where a containerd with that state listens: what talks to
// it may have to start first.
func ContainerdAddress(state string) string { return filepath.Join(state, "c.sock") }

// StartContainerd starts the pinned containerd with everything below dir, which
// it creates, and returns when it serves.
func StartContainerd(ctx context.Context, dir string, o ContainerdOptions) (*Containerd, error) {
	command, err := o.command()
	if err != nil {
		return nil, err
	}
	ctr, err := Tool("ctr")
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("preparing containerd: %w", err)
	}
	state := o.State
	if state == "" {
		if state, err = NewState(); err != nil {
			return nil, err
		}
	}
	c := &Containerd{Address: ContainerdAddress(state), Namespace: filepath.Base(state), dir: dir, state: state, ctr: ctr}
	file := filepath.Join(dir, "containerd.toml")
	c.command = append(command, "--config", file)
	config := containerdConfig(filepath.Join(dir, "root"), state, c.Address)
	if o.Daemon != nil {
		stanzas, err := proxyStanzas(o.Daemon.Socket, o.Daemon.Root)
		if err != nil {
			return nil, errors.Join(err, os.Remove(state))
		}
		merge(config, stanzas)
	}
	merge(config, o.Config)
	if err := writeTOML(file, config); err != nil {
		return nil, errors.Join(err, os.Remove(state))
	}
	if c.proc, err = c.start(); err != nil {
		return nil, errors.Join(err, os.Remove(state))
	}
	if err := waitSocket(ctx, c.Address, c.proc); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	return c, nil
}

// command is what starts a containerd, without its arguments.
func (o *ContainerdOptions) command() ([]string, error) {
	path, err := o.Binary, error(nil)
	if path == "" {
		path, err = Tool("containerd")
	}
	if err != nil || !o.Supervise {
		return []string{path}, err
	}
	keeper, err := Tool("lazyerofsd")
	return []string{keeper, "--supervise", "--", path}, err
}

// start starts containerd. The shim is looked up beside it first, then in its
// PATH; one that is not the pinned containerd has it in its PATH only.
func (c *Containerd) start() (*process, error) {
	return startProcess(filepath.Join(c.dir, "containerd.log"), c.command[0], c.command[1:]...)
}

// waitSocket returns when p accepts connections at a unix socket.
func waitSocket(ctx context.Context, socket string, p *process) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-tick.C:
		case <-p.done:
			return p.exited()
		case <-ctx.Done():
			return fmt.Errorf("%s does not listen at %s: %w; its log ends with:\n%s", p.name, socket, ctx.Err(), p.tail())
		}
	}
}

// Pid is the process of containerd.
func (c *Containerd) Pid() int { return c.proc.cmd.Process.Pid }

// Log is what containerd has written so far.
func (c *Containerd) Log() (string, error) {
	data, err := os.ReadFile(c.proc.log)
	return string(data), err
}

// Ctr runs ctr against this containerd and returns its standard output; what
// it wrote to standard error is part of the error. A cancelled context
// interrupts ctr, and kills it when it does not end soon after.
func (c *Containerd) Ctr(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, c.ctr, append([]string{"--address", c.Address, "--namespace", c.Namespace}, args...)...)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGINT) }
	// ctr passes the signal on to the container, which may ignore it; what is
	// left when ctr is killed is removed by Stop.
	cmd.WaitDelay = 3 * time.Second
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("ctr %s: %w: %s", strings.Join(args, " "), err, tail(stderr.String(), 5))
	}
	return out.String(), nil
}

// Run runs a container to its end with ctr, removes it and returns all that it
// wrote, errors too; args are flags of "ctr run", the image, a name and the
// command. The shim writes into a file and is waited for: through ctr itself the
// end of the output may be missing, for at the exit of the container ctr 2.4.2
// closes its pipes, whatever is still in them (Cancel in pkg/cio/io_unix.go).
func (c *Containerd) Run(ctx context.Context, args ...string) (string, error) {
	out, err := os.CreateTemp(c.dir, "output-*")
	if err != nil {
		return "", fmt.Errorf("running a container: %w", err)
	}
	defer out.Close()
	_, runErr := c.Ctr(ctx, append([]string{"run", "--rm", "--log-uri", "file://" + out.Name()}, args...)...)
	data, err := io.ReadAll(out)
	if runErr != nil {
		runErr = fmt.Errorf("%w: %s", runErr, tail(string(data), 5))
	}
	return string(data), errors.Join(runErr, err, os.Remove(out.Name()))
}

// Stop ends the containers, the shims and containerd itself, and leaves no
// mount, process, socket or control group behind.
func (c *Containerd) Stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var errs []error
	select {
	case <-c.proc.done: // nobody to ask; what it ran is ended below
	default:
		errs = append(errs, c.removeTasks(ctx))
	}
	// A supervisor stays for as long as an incomplete layer is mounted.
	errs = append(errs, UnmountAll(c.state), UnmountAll(c.dir))
	errs = append(errs, c.proc.stop(), c.removeRunc(ctx), killAll(c.state), UnmountAll(c.state), UnmountAll(c.dir),
		os.RemoveAll(c.state), removeCgroups(c.Namespace))
	return errors.Join(errs...)
}

// removeTasks kills and deletes every task through containerd.
func (c *Containerd) removeTasks(ctx context.Context) error {
	out, err := c.Ctr(ctx, "tasks", "list", "--quiet")
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range strings.Fields(out) {
		_, err := c.Ctr(ctx, "tasks", "delete", "--force", id)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// removeRunc deletes the containers that runc still knows, which is none unless
// containerd or a shim was killed.
func (c *Containerd) removeRunc(ctx context.Context) error {
	dir := filepath.Join("/run/containerd/runc", c.Namespace)
	left, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listing containers: %w", err)
	}
	for _, e := range left {
		out, err := exec.CommandContext(ctx, "runc", "--root", dir, "delete", "--force", e.Name()).CombinedOutput()
		if err != nil {
			return fmt.Errorf("removing the container %s: %w: %s", e.Name(), err, out)
		}
	}
	return os.RemoveAll(dir)
}

// removeCgroups removes the empty groups named after a namespace: runc removes
// a container's own, and leaves the one above it.
func removeCgroups(namespace string) error {
	var errs []error
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		found, err := filepath.Glob(pattern + namespace)
		errs = append(errs, err)
		for _, dir := range found {
			// The same hierarchy may be there under two names.
			if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}
