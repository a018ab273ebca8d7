package testenv

import (
	"context"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver/fanotify"
)

// Restart stops containerd alone and starts it again: shims and containers run
// on.
func (c *Containerd) Restart(ctx context.Context) error {
	if err := c.proc.stop(); err != nil {
		return err
	}
	p, err := c.start()
	if err != nil {
		return err
	}
	c.proc = p
	return waitSocket(ctx, c.Address, p)
}

// Replace makes the supervisor start the daemon's binary anew in place of the
// running one, and returns when the new one serves.
func (d *Daemon) Replace(ctx context.Context) error {
	before, err := d.starts()
	if err != nil {
		return err
	}
	if err := d.proc.cmd.Process.Signal(unix.SIGHUP); err != nil {
		return fmt.Errorf("asking for a new daemon: %w", err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		n, err := d.starts()
		if err != nil {
			return err
		}
		if n > before {
			return waitSocket(ctx, d.Socket, d.proc)
		}
		select {
		case <-tick.C:
		case <-d.proc.done:
			return d.proc.exited()
		case <-ctx.Done():
			return fmt.Errorf("no new daemon came: %w; the log ends with:\n%s", ctx.Err(), d.proc.tail())
		}
	}
}

// starts counts how often the daemon was started.
func (d *Daemon) starts() (int, error) {
	log, err := d.Log()
	return strings.Count(log, "lazyerofsd serves"), err
}

// Child waits for the containerd that a supervisor runs, other than the process
// old, and returns its process id.
func (c *Containerd) Child(ctx context.Context, old int) (int, error) { return c.proc.child(ctx, old) }

// Taken returns the fanotify events that a supervised containerd has taken and not
// answered.
func (c *Containerd) Taken() ([]fanotify.Taken, error) { return c.proc.taken() }

// Await returns when containerd answers.
func (c *Containerd) Await(ctx context.Context) error { return waitSocket(ctx, c.Address, c.proc) }
