package kernel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// probeFile is the one file of probeImage.
const probeFile = "f"

// probeImage builds the smallest EROFS image with a file whose data lies in a
// block of its own: superblock and root in the first block, the file's bytes
// in the second. Layout as in fs/erofs/erofs_fs.h. It claims the features
// that our layers use (chunks and device table), so that a kernel without
// them says so here.
func probeImage() (image, content []byte) {
	const (
		block    = 4096
		super    = 1024
		rootOff  = super + 128
		fileOff  = rootOff + 96
		plain    = 0 << 1
		inline   = 2 << 1
		dirent   = 12
		names    = "...f"
		features = 0x4 | 0x8
	)
	le := binary.LittleEndian
	image = make([]byte, 2*block)
	sb := image[super:]
	le.PutUint32(sb, 0xE0F5E1E2)
	sb[12] = 12 // block bits
	le.PutUint16(sb[14:], rootOff/32)
	le.PutUint64(sb[16:], 2)
	le.PutUint32(sb[36:], 2)
	le.PutUint32(sb[80:], features)
	le.PutUint16(sb[88:], (super+128)/128)

	content = bytes.Repeat([]byte("lazyerofs"), block/9+1)[:block]
	copy(image[block:], content)

	root := image[rootOff:]
	le.PutUint16(root, inline)
	le.PutUint16(root[4:], unix.S_IFDIR|0o755)
	le.PutUint16(root[6:], 2)
	le.PutUint32(root[8:], uint32(3*dirent+len(names)))
	for i, d := range []struct {
		nid  uint64
		off  int
		kind byte
	}{{rootOff / 32, 0, 2}, {rootOff / 32, 1, 2}, {fileOff / 32, 3, 1}} {
		b := root[32+i*dirent:]
		le.PutUint64(b, d.nid)
		le.PutUint16(b[8:], uint16(3*dirent+d.off))
		b[10] = d.kind
	}
	copy(root[32+3*dirent:], names)

	file := image[fileOff:]
	le.PutUint16(file, plain)
	le.PutUint16(file[4:], unix.S_IFREG|0o444)
	le.PutUint16(file[6:], 1)
	le.PutUint32(file[8:], block)
	le.PutUint32(file[16:], 1) // first block
	return image, content
}

// HaveFileBackedEROFS mounts a small EROFS image that is a plain file in
// cacheDir and reads a file through the mount. File-backed mounts came with
// Linux 6.12; which file systems may hold the image depends on the kernel.
func HaveFileBackedEROFS(cacheDir string) error {
	const what = "mounting an EROFS image from a file"
	dir, err := os.MkdirTemp(cacheDir, ".probe-erofs-")
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer os.RemoveAll(dir)
	image, want := probeImage()
	path := filepath.Join(dir, "image")
	if err := os.WriteFile(path, image, 0o600); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	got, err := readProbeImage(path)
	if err != nil {
		return refusal(what, err, map[unix.Errno]string{
			unix.ENODEV: "the kernel has no EROFS; enable CONFIG_EROFS_FS or load the module erofs",
			unix.ENOTBLK: "the kernel mounts EROFS from block devices only, or not from this file system; " +
				"Linux 6.12 or newer with CONFIG_EROFS_FS_BACKED_BY_FILE and a cache directory on ext4, xfs or btrfs are needed",
			unix.EINVAL:     "the kernel's EROFS lacks chunk-based files or device tables; Linux 5.16 or newer is needed",
			unix.EOPNOTSUPP: "the kernel's EROFS lacks a feature of the image; Linux 6.12 or newer is needed",
		})
	}
	if !bytes.Equal(got, want) {
		return unsupported(what, nil, "the mount works but reads return wrong bytes; do not use this kernel's EROFS")
	}
	return nil
}

func readProbeImage(path string) ([]byte, error) {
	source, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	ctx, err := OpenFS("erofs")
	if err != nil {
		return nil, err
	}
	defer ctx.Close()
	// The path may be longer than the 255 bytes of a string option.
	if err := ctx.SetString("source", fmt.Sprintf("/proc/self/fd/%d", source.Fd())); err != nil {
		return nil, err
	}
	if err := ctx.Create(); err != nil {
		return nil, err
	}
	mount, err := ctx.Mount(unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return nil, err
	}
	defer mount.Close()
	f, err := openBeneath(mount, probeFile)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}
