package fsverity

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/kernel"
)

// Errors that callers tell apart.
var (
	// ErrBusy marks a file that somebody has open for writing.
	ErrBusy = errors.New("the file is open for writing")
	// ErrNotSealed marks a file without fs-verity.
	ErrNotSealed = errors.New("the file has no fs-verity")
)

// enableArg is struct fsverity_enable_arg (uapi/linux/fsverity.h).
type enableArg struct {
	version, algorithm, blockSize, saltSize uint32
	salt                                    uint64
	sigSize, reserved1                      uint32
	sig                                     uint64
	reserved2                               [11]uint64
}

// Of uapi/linux/fsverity.h.
const (
	algorithmSHA256 = 1
	sha256Size      = 32
)

// Seal turns fs-verity on for f, which is open for reading only, and returns the
// file's digest. A file that is sealed already is no error. It gives ErrBusy while
// there is a writer, and an error that wraps kernel.ErrNotSupported where the kernel
// or the file system has no fs-verity. It reads the whole file.
func Seal(f *os.File) (digest.Digest, error) {
	block, err := blockSize(f)
	if err != nil {
		return "", fmt.Errorf("sealing %s: %w", f.Name(), err)
	}
	arg := enableArg{version: 1, algorithm: algorithmSHA256, blockSize: block}
	for {
		err = ioctl(f, unix.FS_IOC_ENABLE_VERITY, unsafe.Pointer(&arg))
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	switch {
	case err == nil, errors.Is(err, unix.EEXIST):
		return Measure(f)
	case errors.Is(err, unix.ETXTBSY):
		return "", fmt.Errorf("sealing %s: %w: %w", f.Name(), ErrBusy, err)
	case errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EOPNOTSUPP):
		return "", fmt.Errorf("sealing %s: %w (%w): %s", f.Name(), err, kernel.ErrNotSupported,
			"the kernel has no fs-verity (CONFIG_FS_VERITY), or the file system's feature is off (ext4: tune2fs -O verity; btrfs has it, xfs does not)")
	}
	return "", fmt.Errorf("sealing %s: %w", f.Name(), err)
}

// blockSize is the only one that every kernel takes: that of pages, if the file
// system's blocks are as large.
func blockSize(f *os.File) (uint32, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return 0, err
	}
	return uint32(min(int64(os.Getpagesize()), st.Bsize)), nil
}

// Measure returns the digest of a sealed file. It gives ErrNotSealed for any other.
func Measure(f *os.File) (digest.Digest, error) {
	var arg struct {
		algorithm, size uint16
		digest          [sha256Size]byte
	}
	arg.size = sha256Size
	err := ioctl(f, unix.FS_IOC_MEASURE_VERITY, unsafe.Pointer(&arg))
	switch {
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EOPNOTSUPP):
		return "", ErrNotSealed
	case errors.Is(err, unix.EOVERFLOW):
		return "", fmt.Errorf("the digest of %s is longer than a SHA-256", f.Name())
	case err != nil:
		return "", fmt.Errorf("asking for the fs-verity digest of %s: %w", f.Name(), err)
	case arg.algorithm != algorithmSHA256 || arg.size != sha256Size:
		return "", fmt.Errorf("the fs-verity digest of %s is of algorithm %d, not SHA-256", f.Name(), arg.algorithm)
	}
	return digest.NewDigestFromBytes(digest.SHA256, arg.digest[:]), nil
}

// ioctl uses the descriptor without taking it from the runtime's poller.
func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var errno unix.Errno
	if err := conn.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(arg))
	}); err != nil {
		return err
	}
	if errno != 0 {
		return errno
	}
	return nil
}

// Probe seals a small file in dir and looks whether it can still be written to. The
// error is nil, wraps kernel.ErrNotSupported, or says that nothing was found out.
func Probe(dir string) error {
	const what = "sealing a file with fs-verity"
	tmp, err := os.MkdirTemp(dir, ".probe-fsverity-")
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer os.RemoveAll(tmp)
	path := filepath.Join(tmp, "f")
	if err := os.WriteFile(path, []byte("lazyerofs"), 0o600); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer f.Close()
	if _, err := Seal(f); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	w, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		return errors.Join(fmt.Errorf("%s: %w: the file can be opened for writing all the same", what, kernel.ErrNotSupported), w.Close())
	}
	if !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}
