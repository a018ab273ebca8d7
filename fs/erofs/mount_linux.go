package erofs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/kernel"
)

// maxOption is the longest value of an fsconfig(2) string.
const maxOption = 255

// ErrNeedsBlockDevice says that the kernel mounts EROFS from block devices
// only, or not from a file on this file system. It comes with
// kernel.ErrNotSupported and ENOTBLK.
var ErrNeedsBlockDevice = errors.New("the kernel does not mount EROFS from a file here; " +
	"Linux 6.12 or newer and a cache directory on ext4, xfs or btrfs are needed")

// MountConfig says what to mount where.
type MountConfig struct {
	// Source is the image: a path, or /proc/self/fd/N. mountinfo shows it.
	Source string
	// Devices are the files of the device table's slots, in slot order. The
	// kernel checks neither tag nor length of a device: the caller must have.
	Devices []string
	// Target is an existing directory.
	Target string
	// DirectIO makes the kernel read data with O_DIRECT, so that it is cached
	// once, in the mount, and not in the data file's page cache too. A kernel that
	// cannot does without.
	DirectIO bool
	// ReadAheadKB is the read-ahead of the mount in KiB; 0 leaves the kernel's.
	ReadAheadKB int
	// Loop says whether loop devices may stand for the files.
	Loop Loop
	// LoopDirect makes loop devices read with O_DIRECT where DirectIO does not: one
	// that does not reads one range after the other, and all wait for a slow one.
	LoopDirect bool
	// Suid and Dev make set-user-ID bits and device nodes work in this mount.
	// Neither is needed below an overlay or for a bind mount that sets its own
	// flags: there the flags of the upper mount count.
	Suid, Dev bool
}

// MountInfo describes a mount.
type MountInfo struct {
	// Target is the absolute mount point.
	Target string
	// Superblock is the name below /sys/fs/erofs, for SuperblockAlive; that of a
	// loop device has its disk sequence number behind an @ where there is one.
	Superblock string
}

// Mount mounts an image read-only. An error carries the errno and what the
// kernel wrote about it; ErrNeedsBlockDevice where files cannot be mounted.
//
// The calls cannot be interrupted: ctx is looked at between them. Creating the
// superblock reads metadata, and from Linux 7.1 on that raises pre-content
// events on a marked source: whoever answers them must already be at work. Where
// this process answers the reads of the source in a way that SIGKILL does not
// interrupt (FUSE, cachefiles), another process must call Detached: see package
// mountproc.
func Mount(ctx context.Context, cfg MountConfig) (MountInfo, error) {
	mount, name, err := Detached(ctx, cfg)
	if err != nil {
		return MountInfo{}, err
	}
	defer mount.Close()
	if err := ctx.Err(); err != nil {
		return MountInfo{}, err
	}
	return Attach(mount, name, cfg.Target)
}

// Detached makes a superblock as Mount does, and a mount of it that is attached
// nowhere and goes away with its last descriptor. It returns the superblock's name
// too. Target is not looked at.
func Detached(ctx context.Context, cfg MountConfig) (*os.File, string, error) {
	mount, name, err := detachedAnyhow(ctx, cfg)
	if err != nil {
		return nil, "", fmt.Errorf("mounting %s: %w", cfg.Source, err)
	}
	return mount, name, nil
}

// Attach attaches a mount that Detached made, here or in another process, to the
// directory target. It reads nothing of it. The caller still closes mount.
func Attach(mount *os.File, superblock, target string) (MountInfo, error) {
	abs, err := filepath.Abs(target)
	if err != nil {
		return MountInfo{}, err
	}
	raw, err := mount.SyscallConn()
	if err != nil {
		return MountInfo{}, err
	}
	cerr := raw.Control(func(fd uintptr) {
		err = unix.MoveMount(int(fd), "", unix.AT_FDCWD, abs, unix.MOVE_MOUNT_F_EMPTY_PATH)
	})
	if err = errors.Join(cerr, err); err != nil {
		return MountInfo{}, fmt.Errorf("attaching the mount to %s: %w", target, err)
	}
	return MountInfo{Target: abs, Superblock: superblock}, nil
}

// detachedAnyhow is detachedNamed with a loop device where that is needed, and
// with the read-ahead.
func detachedAnyhow(ctx context.Context, cfg MountConfig) (*os.File, string, error) {
	mount, name, err := detachedNamed(ctx, cfg)
	if cfg.Loop == LoopFallback && errors.Is(err, unix.ENOTBLK) {
		cfg.Loop = LoopAlways
		mount, name, err = detachedNamed(ctx, cfg)
	}
	if errors.Is(err, unix.ENOTBLK) {
		return nil, "", fmt.Errorf("%w (%w): %w", err, kernel.ErrNotSupported, ErrNeedsBlockDevice)
	}
	if err != nil || cfg.ReadAheadKB <= 0 {
		return mount, name, err
	}
	if isDeviceNumber(name) {
		_ = mount.Close() // nothing was written through it
		return detachedReadAhead(ctx, cfg)
	}
	if err := setReadAhead(name, cfg.ReadAheadKB); err != nil {
		return nil, "", errors.Join(err, mount.Close())
	}
	return mount, name, nil
}

// detached makes the superblock and a mount of it that is attached nowhere.
func detached(ctx context.Context, cfg MountConfig) (*os.File, error) {
	fsc, err := kernel.OpenFS("erofs")
	if err != nil {
		return nil, err
	}
	defer fsc.Close()
	paths := append([]string{cfg.Source}, cfg.Devices...)
	if cfg.Loop == LoopAlways {
		var held []*loop
		if paths, held, err = loops(cfg); err != nil {
			return nil, err
		}
		defer closeLoops(held) //nolint:errcheck // they were only read
	}
	for i, path := range paths {
		key := "device"
		if i == 0 {
			key = "source"
		}
		opt, held, err := optionPath(path)
		if err != nil {
			return nil, err
		}
		if held != nil {
			defer held.Close() // looked up when the superblock is made
		}
		if err := fsc.SetString(key, opt); err != nil {
			return nil, err
		}
	}
	if cfg.DirectIO && cfg.Loop != LoopAlways { // a loop device has a flag for it
		// Kernels that mount no files, and the first that did, do not know it.
		if err := fsc.SetFlag("directio"); err != nil && !errors.Is(err, unix.EINVAL) {
			return nil, err
		}
	}
	if err := fsc.SetFlag("ro"); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := fsc.Create(); err != nil {
		return nil, err
	}
	attrs := unix.MOUNT_ATTR_RDONLY
	if !cfg.Suid {
		attrs |= unix.MOUNT_ATTR_NOSUID
	}
	if !cfg.Dev {
		attrs |= unix.MOUNT_ATTR_NODEV
	}
	return fsc.Mount(attrs)
}

// optionPath makes path fit for an option: absolute, and where that is too
// long, by way of an O_PATH descriptor that must stay open until the
// superblock is there.
func optionPath(path string) (string, *os.File, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", nil, err
	}
	if len(abs) <= maxOption {
		return abs, nil, nil
	}
	fd, err := unix.Open(abs, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, fmt.Errorf("opening %s: %w", path, err)
	}
	return fmt.Sprintf("/proc/self/fd/%d", fd), os.NewFile(uintptr(fd), abs), nil
}

// Unmount detaches the mount at target: EBUSY while files in it are open,
// EINVAL where nothing is mounted. The superblock may live on, see
// SuperblockAlive.
func Unmount(target string) error {
	if err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmounting %s: %w", target, err)
	}
	return nil
}

// SetReadAhead sets the read-ahead of the EROFS mounted at target, in KiB.
func SetReadAhead(target string, kb int) error {
	name, err := SuperblockOf(target)
	if err != nil {
		return err
	}
	return setReadAhead(name, kb)
}

func setReadAhead(superblock string, kb int) error {
	bdi, err := bdiName(superblock)
	if err != nil {
		return err
	}
	path := filepath.Join("/sys/class/bdi", bdi, "read_ahead_kb")
	if err := os.WriteFile(path, []byte(strconv.Itoa(kb)), 0); err != nil {
		return fmt.Errorf("setting the read-ahead of %s: %w", superblock, err)
	}
	return nil
}

const sysfsEROFS = "/sys/fs/erofs"

// SuperblockOf returns the name of the superblock mounted at target, such as
// "erofs-7@4711". Kernels that cannot tell (EROFS answers FS_IOC_GETFSSYSFSPATH
// only in newer ones, and only files need it) give ENOTTY: keep the name that Mount returned.
func SuperblockOf(target string) (string, error) {
	return superblockName(unix.AT_FDCWD, target)
}

// isSuperblockName keeps "features" and path elements out.
func isSuperblockName(name string) bool {
	name = plainName(name)
	digits, ok := strings.CutPrefix(name, "erofs-")
	return ok && isNumber(digits) || isDeviceNumber(name)
}

func isNumber(digits string) bool {
	_, err := strconv.ParseUint(digits, 10, 64)
	return err == nil
}

// fsSysfsPath is struct fs_sysfs_path of FS_IOC_GETFSSYSFSPATH (uapi/linux/fs.h).
type fsSysfsPath struct {
	Len  uint8
	Name [128]byte
}

// fsIocGetFsSysfsPath is _IOR(0x15, 1, struct fs_sysfs_path).
const fsIocGetFsSysfsPath = 2<<30 | unsafe.Sizeof(fsSysfsPath{})<<16 | 0x15<<8 | 1

// superblockName asks the root directory at name, relative to dir. It reads no
// file data, so it is safe on a mount that this process serves.
func superblockName(dir int, name string) (string, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("opening %s: %w", name, err)
	}
	defer unix.Close(fd)
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return "", fmt.Errorf("statfs %s: %w", name, err)
	}
	if uint32(st.Type) != superMagic {
		return "", fmt.Errorf("%s is not on EROFS: %w", name, unix.EINVAL)
	}
	var dev unix.Stat_t
	if err := unix.Fstat(fd, &dev); err != nil {
		return "", fmt.Errorf("stat %s: %w", name, err)
	}
	if unix.Major(dev.Dev) != 0 {
		return blockName(dev.Dev)
	}
	var p fsSysfsPath
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fsIocGetFsSysfsPath, uintptr(unsafe.Pointer(&p))); e != 0 {
		return "", fmt.Errorf("asking for the superblock's name of %s: %w", name, e)
	}
	path := string(p.Name[:min(int(p.Len), len(p.Name))])
	sb, ok := strings.CutPrefix(path, "erofs/")
	if !ok {
		return "", fmt.Errorf("the kernel names the superblock of %s %q", name, path)
	}
	return entryName(sb), nil
}
