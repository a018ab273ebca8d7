package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/tests/vm"
)

// handOver makes the disk the root and this process the program at path there,
// which mounts the kernel's file systems itself. It returns only after an error.
func handOver(path string) error {
	port, err := openPort()
	if err != nil {
		return err
	}
	// The host takes silence for a kernel that did not come up.
	_, err = io.WriteString(port, "handing over to "+path+"\n")
	if err = errors.Join(err, port.Close()); err != nil {
		return fmt.Errorf("writing to the verdict port: %w", err)
	}
	for _, m := range []string{"/dev/shm", "/tmp", "/run", "/dev", "/sys", "/proc"} {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmounting %s: %w", m, err)
		}
	}
	if err := os.Chdir(vm.DiskRoot); err != nil {
		return err
	}
	// An initramfs cannot be left by pivot_root(2).
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("making the disk the root: %w", err)
	}
	if err := errors.Join(unix.Chroot("."), os.Chdir("/")); err != nil {
		return fmt.Errorf("making the disk the root: %w", err)
	}
	err = syscall.Exec(path, []string{path}, []string{"TERM=linux", "PATH=/usr/sbin:/usr/bin"})
	return fmt.Errorf("becoming %s: %w", path, err)
}
