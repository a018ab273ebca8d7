package erofs

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestLoopMount(t *testing.T) {
	for what, cfg := range map[string]MountConfig{
		"buffered": {ReadAheadKB: 512},
		"direct":   {DirectIO: true},
	} {
		t.Run(what, func(t *testing.T) {
			cfg.Source, cfg.Target, cfg.Loop = mkfs(t, sample(t)), target(t), LoopAlways
			fds := openDescriptors(t)
			info, err := Mount(context.Background(), cfg)
			require.NoError(t, err)
			require.Equal(t, fds, openDescriptors(t))
			require.True(t, strings.HasPrefix(info.Superblock, "loop"), info.Superblock)
			require.Contains(t, info.Superblock, "@")
			got, err := os.ReadFile(filepath.Join(cfg.Target, "text"))
			require.NoError(t, err)
			require.Equal(t, "hello", string(got))
			mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(cfg.Target))
			require.NoError(t, err)
			device, _, _ := strings.Cut(info.Superblock, "@")
			require.Equal(t, "/dev/"+device, mounts[0].Source)
			size, err := os.ReadFile("/sys/block/" + device + "/queue/logical_block_size")
			require.NoError(t, err)
			require.Equal(t, "4096\n", string(size))

			name, err := SuperblockOf(cfg.Target)
			require.NoError(t, err)
			require.Equal(t, info.Superblock, name)
			require.True(t, SuperblockAlive(name))
			require.False(t, SuperblockAlive(name+"0"), "the device is another one's")
			bdi, err := bdiName(name)
			require.NoError(t, err)
			kb, err := os.ReadFile("/sys/class/bdi/" + bdi + "/read_ahead_kb")
			require.NoError(t, err)
			require.Equal(t, cfg.ReadAheadKB == 512, string(kb) == "512\n")
			require.NoError(t, SetReadAhead(cfg.Target, 256))

			require.NoError(t, Unmount(cfg.Target))
			ended(t, name)
			require.Eventually(t, func() bool { // it clears itself
				_, err := os.Stat("/sys/block/" + device + "/loop/backing_file")
				return os.IsNotExist(err) || diskSeq(device) != strings.Split(name, "@")[1]
			}, 10*time.Second, time.Millisecond)
		})
	}
}

// A file on tmpfs cannot be mounted as it is, like any file before 6.12.
func TestLoopFallback(t *testing.T) {
	content, err := os.ReadFile(mkfs(t, sample(t)))
	require.NoError(t, err)
	shm, err := os.CreateTemp("/dev/shm", "erofs-")
	require.NoError(t, err)
	defer os.Remove(shm.Name())
	defer shm.Close()
	_, err = shm.Write(content)
	require.NoError(t, err)
	dir := target(t)
	info, err := Mount(context.Background(), MountConfig{Source: shm.Name(), Target: dir, Loop: LoopFallback, DirectIO: true})
	require.NoError(t, err)
	require.True(t, isBlockName(info.Superblock))
	got, err := os.ReadFile(filepath.Join(dir, "text"))
	require.NoError(t, err)
	require.Equal(t, "hello", string(got))
	require.NoError(t, Unmount(dir))

	image := mkfs(t, sample(t))
	info, err = Mount(context.Background(), MountConfig{Source: image, Target: dir, Loop: LoopFallback})
	require.NoError(t, err)
	require.True(t, isSuperblockName(info.Superblock), "no loop device where none is needed")
	require.NoError(t, Unmount(dir))
}

func TestLoopDevices(t *testing.T) {
	dir := t.TempDir()
	b := NewBuilder()
	i, err := b.Put("file", Attr{Mode: unix.S_IFREG | 0o644, Size: 8192})
	require.NoError(t, err)
	b.SetExtents(i, []Extent{{Len: 8192, Device: 1, Addr: 4096}})
	tree, err := b.Tree()
	require.NoError(t, err)
	layout, err := NewLayout(tree, WriteOptions{Devices: []Device{{Tag: "data", Blocks: 3}}})
	require.NoError(t, err)
	var meta bytes.Buffer
	_, err = layout.WriteMeta(&meta, 0)
	require.NoError(t, err)
	data := bytes.Repeat([]byte("0123456789abcdef"), 3*4096/16)
	source, device := filepath.Join(dir, "meta"), filepath.Join(dir, "data")
	require.NoError(t, os.WriteFile(source, meta.Bytes(), 0o600))
	require.NoError(t, os.WriteFile(device, data, 0o600))
	at := target(t)
	_, err = Mount(context.Background(), MountConfig{Source: source, Devices: []string{device}, Target: at, Loop: LoopAlways})
	require.NoError(t, err)
	got, err := os.ReadFile(filepath.Join(at, "file"))
	require.NoError(t, err)
	require.Equal(t, data[4096:], got)
	require.NoError(t, Unmount(at))
}

// The calls of kernels before 5.8 exist in newer ones too.
func TestOldLoopCalls(t *testing.T) {
	image := mkfs(t, sample(t))
	l, err := openLoop(image, 4096, true) // a free device, which the next takes
	require.NoError(t, err)
	require.NoError(t, l.Close())
	fd, err := unix.Open(image, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	ctl, err := unix.Open(loopControl, unix.O_RDWR|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(ctl)
	require.Eventually(t, func() bool {
		n, err := unix.IoctlRetInt(ctl, unix.LOOP_CTL_GET_FREE)
		require.NoError(t, err)
		dev, err := unix.Open(fmt.Sprintf("/dev/loop%d", n), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		defer unix.Close(dev)
		err = bindOldLoop(dev, fd, 4096, unix.LoopInfo64{
			Flags: unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO,
		})
		if err != nil {
			require.ErrorIs(t, err, unix.EBUSY)
			return false
		}
		info, err := unix.IoctlLoopGetStatus64(dev)
		require.NoError(t, err)
		require.NotZero(t, info.Flags&unix.LO_FLAGS_AUTOCLEAR)
		return true
	}, 10*time.Second, time.Millisecond)
	require.ErrorIs(t, bindOldLoop(fd, fd, 4096, unix.LoopInfo64{}), unix.ENOTTY)
}

func TestLoopRefusals(t *testing.T) {
	dir := target(t)
	fds := openDescriptors(t)
	_, err := Mount(context.Background(), MountConfig{Source: filepath.Join(dir, "none"), Target: dir, Loop: LoopAlways})
	require.ErrorIs(t, err, os.ErrNotExist)
	image := mkfs(t, sample(t))
	_, err = Mount(context.Background(), MountConfig{Source: image, Devices: []string{filepath.Join(dir, "none")}, Target: dir, Loop: LoopAlways})
	require.ErrorIs(t, err, os.ErrNotExist)
	zeros := filepath.Join(t.TempDir(), "zeros")
	require.NoError(t, os.WriteFile(zeros, make([]byte, 8192), 0o600))
	_, err = Mount(context.Background(), MountConfig{Source: zeros, Target: dir, Loop: LoopAlways})
	require.ErrorIs(t, err, unix.EINVAL)
	require.Equal(t, fds, openDescriptors(t))
	for name, want := range map[string]bool{
		"loop3": true, "loop3@17": true, "loop": false, "loop3@": false, "loop@3": false, "loop3/..": false, "dm-3": true, "dm-3@17": true, "dm-": false, "sda": false, "erofs-3": false,
	} {
		require.Equal(t, want, isBlockName(name), name)
	}
}
