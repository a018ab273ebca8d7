package erofs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Loop says whether a mount may go through loop devices.
type Loop uint8

const (
	// LoopNever means the file itself, or ErrNeedsBlockDevice. A loop device raises no
	// fanotify events, so this is for files whose missing ranges raise them.
	LoopNever Loop = iota
	// LoopFallback means loop devices where the kernel mounts no files (before 6.12).
	LoopFallback
	// LoopAlways means loop devices even where the kernel mounts files.
	LoopAlways
)

const (
	loopControl = "/dev/loop-control"
	sysBlock    = "/sys/block"
)

// loopTries bounds the search for a free device: other processes look too.
const loopTries = 64

// loop is a loop device on a file. It clears itself when nobody has it open any
// more, after Close so when the superblock is gone.
type loop struct {
	*os.File
	path string
}

// openLoop binds the file at path, read-only, to a free loop device whose
// sectors are of block bytes.
func openLoop(path string, block uint32, direct bool) (*loop, error) {
	// The runtime's poller has no business with it, and may not have: it could be
	// a file that this process serves.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	defer unix.Close(fd)
	// One mount at a time looks, of all processes that mount for us: all would be
	// told of the same device.
	ctl, err := lock(loopControl, unix.O_RDWR)
	if err != nil {
		return nil, err
	}
	defer ctl.Close()
	for range loopTries {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("looking for a free loop device: %w", err)
		}
		l, err := bindLoop(fmt.Sprintf("/dev/loop%d", n), fd, block, direct)
		if !errors.Is(err, unix.EBUSY) {
			return l, err
		}
	}
	return nil, fmt.Errorf("others took every free loop device: %w", unix.EBUSY)
}

func bindLoop(path string, fd int, block uint32, direct bool) (*loop, error) {
	dev, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	l := &loop{File: os.NewFile(uintptr(dev), path), path: path}
	info := unix.LoopInfo64{Flags: unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR}
	copy(info.File_name[:], "lazyerofs")
	if direct {
		info.Flags |= unix.LO_FLAGS_DIRECT_IO
	}
	err = unix.IoctlLoopConfigure(dev, &unix.LoopConfig{Fd: uint32(fd), Size: block, Info: info})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTTY) { // before Linux 5.8
		err = bindOldLoop(dev, fd, block, info)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("binding %s: %w", path, err), l.Close())
	}
	return l, nil
}

// bindOldLoop does the same in steps. A device that is found bound between
// them is ours: others see EBUSY.
func bindOldLoop(dev, fd int, block uint32, info unix.LoopInfo64) error {
	if err := unix.IoctlSetInt(dev, unix.LOOP_SET_FD, fd); err != nil {
		return err
	}
	direct := info.Flags&unix.LO_FLAGS_DIRECT_IO != 0
	info.Flags &^= unix.LO_FLAGS_DIRECT_IO // it has a call of its own
	err := unix.IoctlLoopSetStatus64(dev, &info)
	if err == nil {
		err = unix.IoctlSetInt(dev, unix.LOOP_SET_BLOCK_SIZE, int(block))
	}
	if err != nil {
		return errors.Join(err, unix.IoctlSetInt(dev, unix.LOOP_CLR_FD, 0))
	}
	if direct {
		// A matter of speed, and not every file can.
		_ = unix.IoctlSetInt(dev, unix.LOOP_SET_DIRECT_IO, 1)
	}
	return nil
}

// loopBlock is the sector size for an image: at most its block size, and as
// large as that for direct I/O. The superblock is resident before any mount.
func loopBlock(image string) (uint32, error) {
	fd, err := unix.Open(image, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("opening %s: %w", image, err)
	}
	defer unix.Close(fd)
	var b [superSize]byte
	n, err := unix.Pread(fd, b[:], superOffset)
	if err != nil {
		return 0, fmt.Errorf("reading the superblock of %s: %w", image, err)
	}
	s, ok := getSuper(b[:])
	if n < len(b) || !ok || s.BlockBits < 9 || s.BlockBits > 12 {
		return 512, nil // the kernel will say what is wrong
	}
	return 1 << s.BlockBits, nil
}

// loops binds the files of a mount; what it returns must stay open until the
// superblock is there.
func loops(cfg MountConfig) (paths []string, held []*loop, err error) {
	block, err := loopBlock(cfg.Source)
	if err != nil {
		return nil, nil, err
	}
	for _, path := range append([]string{cfg.Source}, cfg.Devices...) {
		l, err := openLoop(path, block, cfg.DirectIO || cfg.LoopDirect)
		if err != nil {
			return nil, nil, errors.Join(err, closeLoops(held))
		}
		held, paths = append(held, l), append(paths, l.path)
	}
	return paths, held, nil
}

func closeLoops(held []*loop) error {
	var errs []error
	for _, l := range held {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// blockName is the name of the superblock on block device st_dev. The number of
// a loop device is used again; its disk sequence number, which kernels from 5.15
// on have, is not.
func blockName(dev uint64) (string, error) {
	link := fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(dev), unix.Minor(dev))
	to, err := os.Readlink(link)
	if err != nil {
		return "", fmt.Errorf("looking for the superblock's device: %w", err)
	}
	name := filepath.Base(to)
	if seq := diskSeq(name); seq != "" {
		return name + "@" + seq, nil
	}
	return name, nil
}

func diskSeq(name string) string {
	b, err := os.ReadFile(filepath.Join(sysBlock, name, "diskseq"))
	if err != nil {
		return "" // before 5.15
	}
	return strings.TrimSpace(string(b))
}

// blockAlive is SuperblockAlive for one on a block device.
func blockAlive(name string) bool {
	device, seq, numbered := strings.Cut(name, "@")
	if _, err := os.Stat(filepath.Join(sysfsEROFS, device)); errors.Is(err, os.ErrNotExist) {
		return false
	}
	return !numbered || diskSeq(device) == seq
}

// isBlockName keeps other directories and path elements out.
func isBlockName(name string) bool {
	digits, ok := strings.CutPrefix(name, "loop")
	if !ok {
		digits, ok = strings.CutPrefix(name, "dm-") // of the device mapper
	}
	digits, seq, numbered := strings.Cut(digits, "@")
	return ok && isNumber(digits) && (!numbered || isNumber(seq))
}

// bdiName is the name of a superblock below /sys/class/bdi.
func bdiName(superblock string) (string, error) {
	if !isBlockName(superblock) {
		return plainName(superblock), nil
	}
	device, _, _ := strings.Cut(superblock, "@")
	b, err := os.ReadFile(filepath.Join(sysBlock, device, "dev"))
	if err != nil {
		return "", fmt.Errorf("looking for the number of %s: %w", device, err)
	}
	return strings.TrimSpace(string(b)), nil
}
