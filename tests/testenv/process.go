package testenv

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// grace is how long a process has to end before it is killed.
const grace = 15 * time.Second

// process is a child that runs until it is stopped, with its output in a file.
// It has a process group of its own: an interrupt at the terminal reaches us
// alone, so that we stop things in order.
type process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // of Wait, after done
}

func startProcess(log, path string, args ...string) (*process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", path, err)
	}
	defer out.Close()                                                                                // the child has its own
	p := &process{name: path, log: log, cmd: exec.Command(path, args...), done: make(chan struct{})} //nolint:noctx // ended by stop, in order and not by a context
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", path, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// stop asks the process to end, and kills it after grace. What it answers to
// the request is not an error; having to kill it is.
func (p *process) stop() error {
	select {
	case <-p.done:
		return nil
	default:
	}
	// Between the check and here the process may end, but not be reaped by
	// another: its number cannot mean anyone else.
	_ = p.cmd.Process.Signal(unix.SIGTERM)
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.done:
		return nil
	case <-timer.C:
	}
	_ = p.cmd.Process.Kill()
	<-p.done
	return fmt.Errorf("%s did not end within %s and was killed; its log ends with:\n%s", p.name, grace, p.tail())
}

// exited describes the end of a process that should still run.
func (p *process) exited() error {
	return fmt.Errorf("%s ended (%w); its log ends with:\n%s", p.name, p.err, p.tail())
}

func (p *process) tail() string {
	data, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return tail(string(data), 20)
}

// killAll ends the processes that name dir in their command line.
func killAll(dir string) error {
	pids, err := Processes(dir)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("killing process %d: %w", pid, err)
		}
	}
	return nil
}
