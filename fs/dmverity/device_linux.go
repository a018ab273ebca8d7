package dmverity

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/go-dmverity/pkg/dm"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/kernel"
)

const (
	control    = "/dev/mapper/control"
	namePrefix = "lazyerofs-"
	sector     = 512
)

// Device is a block device through which the kernel reads an image and checks every
// block against the image's hash tree: a wrong block is an EIO.
type Device struct {
	name, path string
}

// Open makes a device for the image in the file at path. The file must be complete
// and may not be one whose reads this process answers. The image's superblock is
// not looked at: an image that does not have the root of v gives EIO when it is
// mounted. A kernel without device mapper or dm-verity gives an error that wraps
// kernel.ErrNotSupported, a superblock of the tree that does not go with v one that
// wraps ErrMismatch.
//
// Release must follow, after the mount or without one.
func Open(path string, v chunk.Verity) (*Device, error) {
	table, err := tableOf(path, v)
	if err != nil {
		return nil, fmt.Errorf("opening a dm-verity device for %s: %w", path, err)
	}
	d, err := open(path, table)
	if err != nil {
		return nil, fmt.Errorf("opening a dm-verity device for %s: %w", path, err)
	}
	return d, nil
}

// tableOf says what the device is, but for the device below it.
func tableOf(path string, v chunk.Verity) (dm.OpenArgs, error) {
	f, err := os.Open(path)
	if err != nil {
		return dm.OpenArgs{}, err
	}
	defer f.Close()
	salt, err := Super(f, v)
	if err != nil {
		return dm.OpenArgs{}, err
	}
	root, err := digestBytes(v)
	if err != nil {
		return dm.OpenArgs{}, err
	}
	return dm.OpenArgs{
		Version: hashType, HashName: hashName, RootDigest: root, Salt: salt,
		DataBlockSize: uint32(v.BlockSize), HashBlockSize: uint32(v.BlockSize),
		DataBlocks:     uint64(v.HashOffset / v.BlockSize),
		HashStartBytes: uint64(v.HashOffset + v.BlockSize), // behind the superblock
	}, nil
}

func open(path string, table dm.OpenArgs) (_ *Device, err error) {
	c, err := dm.Open()
	if err != nil {
		return nil, refusal(err)
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	// It clears itself with its last user, which is the device.
	loop, err := mount.SetupLoop(path, mount.LoopParams{Readonly: true, Autoclear: true})
	if err != nil {
		return nil, refusal(err)
	}
	defer func() { err = errors.Join(err, loop.Close()) }()
	table.DataDevice, table.HashDevice = loop.Name(), loop.Name()
	params, err := dm.BuildTargetParams(table)
	if err != nil {
		return nil, err
	}
	// Two mounts of one file are two devices, and one that an overlay still holds
	// keeps its name.
	d := &Device{name: namePrefix + rand.Text()}
	if _, err := c.CreateDevice(d.name); err != nil {
		return nil, refusal(err)
	}
	length := table.DataBlocks * uint64(table.DataBlockSize) / sector
	err = c.LoadTable(d.name, []dm.Target{{Length: length, Type: "verity", Params: params}})
	if err == nil {
		err = c.SuspendDevice(d.name, false)
	}
	if err == nil {
		d.path, err = node(c, d.name)
	}
	if err != nil {
		return nil, errors.Join(refusal(err), d.Release())
	}
	return d, nil
}

// node finds the device's file. It is the kernel's own, which is there at once;
// those in /dev/mapper are udev's.
func node(c *dm.Control, name string) (string, error) {
	st, err := c.DeviceStatus(name)
	if err != nil {
		return "", err
	}
	to, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", st.Major, st.Minor))
	if err != nil {
		return "", err
	}
	path := filepath.Join("/dev", filepath.Base(to))
	_, err = os.Stat(path)
	return path, err
}

// Path is the device's file.
func (d *Device) Path() string { return d.path }

// Release has the kernel remove the device as soon as nobody uses it: at once, or
// when the last superblock on it is gone, whatever becomes of this process.
func (d *Device) Release() error {
	f, err := os.OpenFile(control, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("removing dm-verity device %s: %w", d.name, err)
	}
	defer f.Close()
	// The library's own removal gives EBUSY while the device is in use.
	arg := unix.DmIoctl{
		Version: [3]uint32{dm.DMVersionMajor, dm.DMVersionMinor, dm.DMVersionPatch},
		Flags:   unix.DM_DEFERRED_REMOVE, Data_size: unix.SizeofDmIoctl, Data_start: unix.SizeofDmIoctl,
	}
	copy(arg.Name[:len(arg.Name)-1], d.name)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.DM_DEV_REMOVE, uintptr(unsafe.Pointer(&arg))); errno != 0 {
		return fmt.Errorf("removing dm-verity device %s: %w", d.name, errno)
	}
	return nil
}

// refusal says what would have to change for err to go away, where that is known.
func refusal(err error) error {
	var hint string
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		hint = "it needs CAP_SYS_ADMIN in the initial user namespace and the machine's own /dev; run as root"
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		hint = "the kernel has no device mapper or no loop devices; enable CONFIG_BLK_DEV_DM and CONFIG_BLK_DEV_LOOP or load the modules dm_mod and loop"
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOTTY):
		hint = "the kernel has no dm-verity; enable CONFIG_DM_VERITY or load the module dm_verity"
	default:
		return err
	}
	return fmt.Errorf("%w (%w): %s", err, kernel.ErrNotSupported, hint)
}

// Probe reads a block of a small image in dir through a device. The error is nil,
// wraps kernel.ErrNotSupported, or says that nothing was found out.
func Probe(dir string) (err error) {
	const what = "reading through a dm-verity device"
	tmp, err := os.MkdirTemp(dir, ".probe-dmverity-")
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer os.RemoveAll(tmp)
	image := make([]byte, 2*blockSize)
	copy(image, "lazyerofs")
	path := filepath.Join(tmp, "image")
	v, err := appendTo(path, image)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	d, err := Open(path, v)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer func() { err = errors.Join(err, d.Release()) }()
	f, err := os.Open(d.Path())
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer f.Close()
	got := make([]byte, len(image))
	if _, err := f.ReadAt(got, 0); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if string(got) != string(image) {
		return fmt.Errorf("%s: %w: it gives other bytes", what, kernel.ErrNotSupported)
	}
	return nil
}

// appendTo writes image and its tree to a new file.
func appendTo(path string, image []byte) (v chunk.Verity, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return v, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b, err := NewBuilder(filepath.Dir(path))
	if err != nil {
		return v, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	if err := b.Add(AppendLeaves(nil, image)); err != nil {
		return v, err
	}
	t, err := b.Finish()
	if err != nil {
		return v, err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	if _, err := f.Write(image); err != nil {
		return v, err
	}
	_, err = t.WriteTo(f)
	return t.Verity, err
}

func digestBytes(v chunk.Verity) ([]byte, error) { return hex.DecodeString(v.Hex()) }
