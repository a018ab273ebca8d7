package testenv

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Restart stops containerd alone and starts it again: shims and containers run
// on.
func (c *Containerd) Restart(ctx context.Context) error {
	if err := c.proc.stop(); err != nil {
		return err
	}
	p, err := startProcess(c.proc.log, c.proc.name, "--config", filepath.Join(c.dir, "containerd.toml"))
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
