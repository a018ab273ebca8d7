package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/tests/vm"
)

// deviceWait is how long the data disk may take to appear.
const deviceWait = 2 * time.Minute

// setUp makes the machine one in which tests can run.
func setUp() error {
	for _, m := range []struct{ fstype, at string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/run"}, {"tmpfs", "/tmp"}, {"tmpfs", "/dev/shm"},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.fstype, m.at, m.fstype, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mounting %s: %w", m.at, err)
		}
	}
	if err := loadModules(vm.ModuleDir); err != nil {
		return err
	}
	if err := mountDisk(); err != nil {
		return err
	}
	for k, v := range map[string]string{
		"PATH":   filepath.Join(vm.DiskRoot, vm.SourceRoot, "bin") + ":/sbin:/bin",
		"HOME":   "/root",
		"TMPDIR": filepath.Join(vm.DiskRoot, "tmp"),
	} {
		if err := os.Setenv(k, v); err != nil {
			return err
		}
	}
	return network()
}

// loadModules loads what is in dir in the order of the names.
func loadModules(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("loading modules: %w", err)
	}
	for _, e := range entries {
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			return fmt.Errorf("loading modules: %w", err)
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		_ = f.Close() // it was only read
		// A module for a processor that this is not says ENODEV; what needs it falls
		// back to another.
		if err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("loading module %s: %w", e.Name(), err)
		}
	}
	return nil
}

// mountDisk waits for the disk, which a driver finds in the background.
func mountDisk() error {
	if err := os.MkdirAll(vm.DiskRoot, 0o755); err != nil {
		return err
	}
	deadline := time.After(deviceWait)
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		err := unix.Mount(vm.DiskDevice, vm.DiskRoot, "ext4", 0, "")
		if err == nil {
			return nil
		}
		select {
		case <-deadline:
			return fmt.Errorf("mounting the data disk: %w", err)
		case <-again.C:
		}
	}
}

// network brings loopback up, and the way to the host if there is a card.
func network() error {
	commands := []string{"ip link set lo up"}
	if _, err := os.Stat("/sys/class/net/eth0"); err == nil {
		commands = append(commands, "ip link set eth0 up", "ip addr add 10.0.2.15/24 dev eth0", "ip route add default via 10.0.2.2")
	}
	for _, c := range commands {
		words := strings.Fields(c)
		out, err := exec.Command(words[0], words[1:]...).CombinedOutput() //nolint:noctx // three words to busybox
		if err != nil {
			return fmt.Errorf("%s: %w: %s", c, err, out)
		}
	}
	return nil
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
