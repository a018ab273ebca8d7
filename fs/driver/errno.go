package driver

import (
	"errors"
	"syscall"
)

// Errno translates the failure of a fill into the errno that the kernel is
// told; 0 for nil. It is the only place that does so.
//
// The answers are few on purpose. A pre-content group accepts EIO, EPERM,
// EBUSY, ETXTBSY, EAGAIN, ENOSPC and EDQUOT only, and an errno outside that list
// leaves the reader blocked for ever; EAGAIN would make a blocking reader of a
// FUSE file see a "would block" that it cannot act on. So a full disk says what
// it is, and everything else, corrupt bytes, an unreachable registry, a
// cancelled wait, is EIO, which every reader knows how to handle.
func Errno(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	for _, full := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT} {
		if errors.Is(err, full) {
			return full
		}
	}
	return syscall.EIO
}
