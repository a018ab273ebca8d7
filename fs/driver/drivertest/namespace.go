package drivertest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// apartEnv is set in a test binary that runs in a mount namespace of its own.
const apartEnv = "DRIVERTEST_APART"

// apart runs this test binary again in a mount namespace of its own, and returns
// its exit code; false when that is so already, or may not be.
//
// A superblock lives as long as any namespace has it mounted, and whoever makes
// a namespace, every container runtime for one, copies all mounts into it. So in
// the namespace of the machine the laws about the end of mounts would hang on
// what else runs on it. What a failed test leaves mounted ends here too.
func apart() (int, bool) {
	if os.Getenv(apartEnv) != "" {
		return 0, false
	}
	// The signal that a parent's death sends is that of its thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command(os.Args[0], os.Args[1:]...) //nolint:noctx // it ends with the process
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), apartEnv+"=1")
	// Unshareflags make every mount private, too.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, true
	case errors.As(err, &exit):
		return max(1, exit.ExitCode()), true
	case errors.Is(err, unix.EPERM):
		return 0, false
	}
	fmt.Fprintln(os.Stderr, "running apart:", err)
	return 1, true
}

// dropForeign detaches the copies of mounts that may be under test elsewhere,
// where somebody waits for their end.
func dropForeign() error {
	if os.Getenv(apartEnv) == "" {
		return nil
	}
	mounts, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		lazy := i.FSType == "erofs" || i.FSType == "overlay" || strings.HasPrefix(i.FSType, "fuse")
		return !lazy || i.FSType == "fusectl" || i.Mountpoint == "/", false
	})
	if err != nil {
		return err
	}
	for _, m := range mounts {
		// One may be hidden by another, or gone with it.
		_ = unix.Unmount(m.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	return nil
}
