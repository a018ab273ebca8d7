package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// cost is what a process took, or several one after the other.
type cost struct {
	Wall time.Duration `json:"wall_ns"`
	CPU  time.Duration `json:"cpu_ns"` // user and system, of all its threads and its children
	// Peak is ru_maxrss of getrusage(2) in KiB. A process begins with the peak of
	// the one that started it, so it is never below that of the bench itself.
	Peak int64 `json:"peak_kib"`
}

// then is the cost of c followed by next.
func (c cost) then(next cost) cost {
	return cost{Wall: c.Wall + next.Wall, CPU: c.CPU + next.CPU, Peak: max(c.Peak, next.Peak)}
}

// step is one process of a conversion.
type step struct {
	Name string `json:"name"`
	cost
}

// command runs a program to its end and returns what it cost and printed.
func command(ctx context.Context, in []byte, name string, args ...string) (cost, []byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	var out, stderr bytes.Buffer
	if in != nil {
		cmd.Stdin = bytes.NewReader(in)
	}
	cmd.Stdout, cmd.Stderr = &out, &stderr
	start := time.Now()
	err := cmd.Run()
	c := cost{Wall: time.Since(start)}
	if err != nil {
		return c, nil, fmt.Errorf("%s %q: %w: %s", name, args, errors.Join(err, context.Cause(ctx)), stderr.String())
	}
	c.CPU = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return c, nil, errors.New("the system does not tell what a process used")
	}
	c.Peak = u.Maxrss
	return c, out.Bytes(), nil
}

// worker runs this program with a verb of its own: request and answer are JSON.
func worker(ctx context.Context, verb string, request, answer any) (cost, error) {
	self, err := os.Executable()
	if err != nil {
		return cost{}, fmt.Errorf("finding our own binary: %w", err)
	}
	in, err := json.Marshal(request)
	if err != nil {
		return cost{}, fmt.Errorf("encoding a job: %w", err)
	}
	c, out, err := command(ctx, in, self, verb)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(out, answer); err != nil {
		return c, fmt.Errorf("reading what %s answered: %w", verb, err)
	}
	return c, nil
}

// serve is the other end of worker.
func serve[Q, A any](ctx context.Context, in io.Reader, out io.Writer, do func(context.Context, Q) (A, error)) error {
	var q Q
	if err := json.NewDecoder(in).Decode(&q); err != nil {
		return fmt.Errorf("reading the job: %w", err)
	}
	a, err := do(ctx, q)
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(a)
}

// medianOf returns the median; of an even number the lower of the middle two.
func medianOf(all []time.Duration) time.Duration {
	if len(all) == 0 {
		return 0
	}
	all = slices.Sorted(slices.Values(all))
	return all[(len(all)-1)/2]
}
