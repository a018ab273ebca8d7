package testenv

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"
)

// HostOptions are what may differ between two hosts.
type HostOptions struct {
	Lazy       bool  // lazyerofsd runs beside containerd and is its snapshotter
	Daemon     table // lazyerofsd's configuration, beyond containerd's address
	Containerd table // merged over the rest of containerd's configuration
}

// Host is a containerd and, if asked for, a lazyerofsd, with nothing in them.
type Host struct {
	*Containerd
	Daemon *Daemon // nil unless Lazy
}

// StartHost starts a host with all that it keeps below dir.
func StartHost(ctx context.Context, dir string, o HostOptions) (*Host, error) {
	if !o.Lazy {
		c, err := StartContainerd(ctx, dir, ContainerdOptions{Config: o.Containerd})
		return &Host{Containerd: c}, err
	}
	state, err := NewState()
	if err != nil {
		return nil, err
	}
	config := table{"containerd": table{"address": ContainerdAddress(state)}}
	merge(config, o.Daemon)
	d, err := StartDaemon(ctx, filepath.Join(dir, "d"), DaemonOptions{Supervise: true, Config: config})
	if err != nil {
		return nil, errors.Join(err, os.Remove(state))
	}
	c, err := StartContainerd(ctx, filepath.Join(dir, "c"), ContainerdOptions{Daemon: d, State: state, Config: o.Containerd})
	if err != nil {
		return nil, errors.Join(err, d.Stop())
	}
	return &Host{Containerd: c, Daemon: d}, nil
}

// CPU is what containerd, the daemon and the programs that they ran have computed
// since their start. Shims and containers are not in it.
func (h *Host) CPU() (time.Duration, error) {
	sum, err := CPUOf(h.Containerd.Pid())
	if err != nil || h.Daemon == nil {
		return sum, err
	}
	more, err := CPUOf(h.Daemon.Pid())
	return sum + more, err
}

// Stop ends the containers first: what they read comes through the daemon.
func (h *Host) Stop() error {
	err := h.Containerd.Stop()
	if h.Daemon != nil {
		err = errors.Join(err, h.Daemon.Stop())
	}
	return err
}
