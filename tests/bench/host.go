package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// host is a supervised daemon of ours with an image mounted through it.
type host struct {
	dir    string
	daemon *testenv.Daemon
	root   string // where the image is mounted
}

// unusableError says why a driver cannot be measured here.
type unusableError struct{ driver, reason string }

func (e *unusableError) Error() string { return e.driver + ": " + e.reason }

// startHost starts a daemon with all that it keeps below a new directory in dir.
// An empty driver leaves the choice to it. A driver that this build does not have
// or that does not work here is an *unusableError.
func startHost(ctx context.Context, dir, driver string, config map[string]any) (*host, error) {
	at, err := os.MkdirTemp(dir, "host-")
	if err != nil {
		return nil, fmt.Errorf("preparing a host: %w", err)
	}
	all := map[string]any{
		"driver":      map[string]any{"name": driver},
		"snapshotter": map[string]any{"strict": true},
	}
	for k, v := range config {
		all[k] = v
	}
	d, err := testenv.StartDaemon(ctx, filepath.Join(at, "d"), testenv.DaemonOptions{Supervise: true, Config: all})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(at))
	}
	h := &host{dir: at, daemon: d, root: filepath.Join(at, "mnt")}
	if err := h.usable(driver); err != nil {
		return nil, errors.Join(err, h.stop())
	}
	if err := os.Mkdir(h.root, 0o755); err != nil {
		return nil, errors.Join(fmt.Errorf("preparing a host: %w", err), h.stop())
	}
	return h, nil
}

// noLazy is what the daemon logs when it has no driver.
const noLazy = "layers are not loaded lazily"

func (h *host) usable(driver string) error {
	log, err := h.daemon.Log()
	if err != nil {
		return err
	}
	for line := range strings.Lines(log) {
		if strings.Contains(line, noLazy) {
			return &unusableError{driver, reason(line)}
		}
	}
	return nil
}

// reason is the error in a line of the daemon's log, or the line.
func reason(line string) string {
	_, after, found := strings.Cut(strings.TrimSpace(line), `error="`)
	if !found {
		return strings.TrimSpace(line)
	}
	if i := strings.LastIndex(after, `"`); i >= 0 {
		after = after[:i]
	}
	return strings.ReplaceAll(after, `\"`, `"`)
}

// mount mounts an image, whose layers stay when an earlier mount had them.
func (h *host) mount(ctx context.Context, ref string) error {
	_, err := lazyerofs(ctx, append([]string{"mount"}, h.args(ref, h.root)...)...)
	return err
}

func (h *host) umount(ctx context.Context) error {
	_, err := lazyerofs(ctx, append([]string{"umount"}, h.args(h.root)...)...)
	return err
}

// args are the arguments of a command that is to reach this host's daemon.
func (h *host) args(rest ...string) []string {
	return append([]string{"--root", h.daemon.Root, "--address", h.daemon.Socket}, rest...)
}

// stop ends the daemon and removes what it kept. Readers are gone by then.
func (h *host) stop() error {
	return errors.Join(testenv.UnmountAll(h.dir), h.daemon.Stop(), os.RemoveAll(h.dir))
}

// completed is what the daemon logs when the last byte of a layer is there.
const completed = "layer is complete"

// incomplete reports whether no layer was completed yet.
func (h *host) incomplete() (bool, error) {
	log, err := h.daemon.Log()
	return !strings.Contains(log, completed), err
}

// awaitComplete returns once the one layer is complete.
func (h *host) awaitComplete(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if not, err := h.incomplete(); err != nil || !not {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting for the layer to be complete: %w", ctx.Err())
		}
	}
}

// dataFile is the image data of the one layer.
func (h *host) dataFile() (string, error) {
	var found []string
	err := filepath.WalkDir(filepath.Join(h.daemon.Root, "cache"), func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && d.Name() == "data" {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("looking for the data file: %w", err)
	}
	if len(found) != 1 {
		return "", fmt.Errorf("looking for the data file of one layer: found %q", found)
	}
	return found[0], nil
}

// lazyerofs runs the command line and returns what it printed.
func lazyerofs(ctx context.Context, args ...string) (string, error) {
	path, err := testenv.Tool("lazyerofs")
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("lazyerofs %s: %w: %s", args[0], err, stderr.String())
	}
	return out.String(), nil
}
