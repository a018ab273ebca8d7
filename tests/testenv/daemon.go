package testenv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// DaemonOptions are what may differ between two private daemons.
type DaemonOptions struct {
	Binary    string   // instead of the tree's own
	Supervise bool     // run under our own keeper of descriptors
	Config    table    // the configuration file; nil for an empty one
	Args      []string // further arguments
}

// Daemon is a lazyerofsd of our own.
type Daemon struct {
	Root   string // its state, below dir
	Socket string

	dir, run string
	proc     *process
}

// StartDaemon starts lazyerofsd with everything below dir, which it creates,
// and returns when it serves.
func StartDaemon(ctx context.Context, dir string, o DaemonOptions) (*Daemon, error) {
	path, err := o.Binary, error(nil)
	if path == "" {
		path, err = Tool("lazyerofsd")
	}
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("preparing lazyerofsd: %w", err)
	}
	run, err := NewState()
	if err != nil {
		return nil, err
	}
	d := &Daemon{Root: filepath.Join(dir, "root"), Socket: filepath.Join(run, "d.sock"), dir: dir, run: run}
	config := filepath.Join(dir, "config.toml")
	if err := writeTOML(config, o.Config); err != nil {
		return nil, errors.Join(err, os.Remove(run))
	}
	args := []string{"--config", config, "--root", d.Root, "--address", d.Socket}
	if o.Supervise {
		args = append(args, "--supervise")
	}
	if d.proc, err = startProcess(filepath.Join(dir, "lazyerofsd.log"), path, append(args, o.Args...)...); err != nil {
		return nil, errors.Join(err, os.Remove(run))
	}
	if err := waitSocket(ctx, d.Socket, d.proc); err != nil {
		return nil, errors.Join(err, d.Stop())
	}
	return d, nil
}

// Log is what the daemon has written so far.
func (d *Daemon) Log() (string, error) {
	data, err := os.ReadFile(d.proc.log)
	return string(data), err
}

// Pid is the process that StartDaemon started: the daemon, or its supervisor.
func (d *Daemon) Pid() int { return d.proc.pid() }

// Stop unmounts the layers, which no container may use any more, and ends the
// daemon and its supervisor. A supervisor stays for as long as an incomplete
// layer is mounted, so the mounts go first.
func (d *Daemon) Stop() error {
	return errors.Join(UnmountAll(d.dir), d.proc.stop(), killAll(d.run), UnmountAll(d.dir), os.RemoveAll(d.run))
}
