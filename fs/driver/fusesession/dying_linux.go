package fusesession

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Dying reports whether the thread pid, a caller in fuse.InHeader, has been
// killed and only waits for our answer. A file system that is told of an
// INTERRUPT (its cancel channel closes) answers EINTR if so, and otherwise goes
// on: any signal interrupts, and a reader that lives would see a failed read.
// False in doubt, as for 0, a caller from another pid namespace.
func Dying(pid uint32) bool {
	if pid == 0 {
		return false
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	return killPending(status)
}

// killPending looks for SIGKILL among the pending signals of proc_pid_status(5):
// of the thread, where the kernel puts it in every thread of a dying process.
func killPending(status []byte) bool {
	for line := range bytes.Lines(status) {
		for _, key := range []string{"SigPnd:", "ShdPnd:"} {
			if rest, ok := bytes.CutPrefix(line, []byte(key)); ok {
				set, err := strconv.ParseUint(string(bytes.TrimSpace(rest)), 16, 64)
				if err == nil && set&(1<<(unix.SIGKILL-1)) != 0 {
					return true
				}
			}
		}
	}
	return false
}
