package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/tests/vm"
)

func main() {
	first := os.Getpid() == 1
	var err error
	if first {
		err = setUp()
	}
	var plan vm.Plan
	if err == nil {
		plan, err = readPlan(filepath.Join(vm.DiskRoot, vm.PlanFile))
	}
	switch {
	case err != nil:
	case first && plan.Init != "":
		err = handOver(plan.Init)
	default:
		err = verdict(plan)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "init:", err) // the console is all there is
	}
	unix.Sync()
	// qemu ends at a restart.
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil {
		fmt.Fprintln(os.Stderr, "init: restarting:", err)
	}
}

func readPlan(file string) (vm.Plan, error) {
	var p vm.Plan
	b, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	if err != nil {
		return p, fmt.Errorf("reading the plan: %w", err)
	}
	return p, nil
}

// openPort opens the verdict port so that nothing changes what is written.
func openPort() (*os.File, error) {
	port, err := os.OpenFile(vm.VerdictPort, os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the verdict port: %w", err)
	}
	return port, rawTerminal(port)
}

// verdict carries out the plan.
func verdict(p vm.Plan) error {
	port, err := openPort()
	if err != nil {
		return err
	}
	r := runner{out: port, nonce: p.Nonce, root: filepath.Join(vm.DiskRoot, vm.SourceRoot)}
	for _, run := range p.Runs {
		r.run(run)
	}
	r.say("done")
	if r.err != nil {
		return r.err
	}
	return port.Close()
}

func rawTerminal(f *os.File) error {
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return fmt.Errorf("asking the verdict port: %w", err)
	}
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t); err != nil {
		return fmt.Errorf("setting the verdict port: %w", err)
	}
	return nil
}

// runner writes the verdict; its first error stays.
type runner struct {
	out   io.Writer
	nonce string
	root  string
	last  byte
	err   error
}

// Write passes on what a test prints.
func (r *runner) Write(p []byte) (int, error) {
	n, err := r.out.Write(p)
	if n > 0 {
		r.last = p[n-1]
	}
	r.err = errors.Join(r.err, err)
	return n, err
}

// say writes a line of our own, after what may be half a line of a test's.
func (r *runner) say(verb string) {
	text := vm.Frame(r.nonce, verb)
	if r.last != 0 && r.last != '\n' {
		text = "\n" + text
	}
	_, _ = r.Write([]byte(text)) // the error is kept
}

// run runs one test binary to its end.
func (r *runner) run(run vm.Run) {
	r.say("begin " + run.Package)
	dir := filepath.Join(r.root, run.Package)
	args := append([]string{"-test.v", "-test.timeout=" + run.Limit().String()}, run.Args...)
	cmd := exec.Command(filepath.Join(dir, "test"), args...) //nolint:noctx // -test.timeout ends it, and the host the machine
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), run.Env...)
	cmd.Stdout, cmd.Stderr = r, r
	// Daemons that a test leaves behind may hold its output open.
	cmd.WaitDelay = 10 * time.Second
	start := time.Now()
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		r.say("trouble running " + run.Package + ": " + oneLine(err))
	}
	code := -1
	if cmd.ProcessState != nil {
		code = cmd.ProcessState.ExitCode()
	}
	r.say(fmt.Sprintf("end %s %d %s", run.Package, code, time.Since(start).Round(time.Millisecond)))
}
