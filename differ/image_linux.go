package differ

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// startWriting tells the kernel to begin writing n bytes of f from off to the disk,
// and does not wait. Whether it does changes only when a later sync ends.
func startWriting(f *os.File, off, n int64) {
	_ = unix.SyncFileRange(int(f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
}

// insertFront moves the size bytes of f up by n. ext4 and xfs do it without
// touching data; elsewhere, and where n is not a multiple of the file system's
// own block, the data is copied from the end to the front.
func insertFront(f *os.File, n, size int64) error {
	if size == 0 {
		return f.Truncate(n)
	}
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_INSERT_RANGE, 0, n)
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL) {
		return os.NewSyscallError("fallocate", err)
	}
	return moveUp(f, n, size)
}

// moveUp is insertFront by copying.
func moveUp(f *os.File, n, size int64) error {
	if err := f.Truncate(n + size); err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for end := size; end > 0; {
		k := min(int64(len(buf)), end)
		p := buf[:k]
		end -= k
		if _, err := f.ReadAt(p, end); err != nil && err != io.EOF {
			return err
		}
		if _, err := f.WriteAt(p, end+n); err != nil {
			return err
		}
	}
	return nil
}
