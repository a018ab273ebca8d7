package erofs

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/kernel"
)

// tool finds a program of erofs-utils: the pinned one of `make tools`, else
// the distribution's.
func tool(t testing.TB, name string) string {
	t.Helper()
	pinned, err := filepath.Abs(filepath.Join("..", "..", ".cache", "tools", "bin", name))
	require.NoError(t, err)
	if _, err := os.Stat(pinned); err == nil {
		return pinned
	}
	path, err := exec.LookPath(name)
	require.NoError(t, err, "install erofs-utils, or run make tools")
	return path
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	require.NoError(t, err, "%s %v: %s", name, args, out)
	return string(out)
}

// mkfs makes an image of dir in the layouts that we read.
func mkfs(t testing.TB, dir string, args ...string) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	run(t, tool(t, "mkfs.erofs"), append(append([]string{"-Enoinline_data"}, args...), image, dir)...)
	return image
}

// sample fills a directory with a set-user-ID program and a text file.
func sample(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o755))
	id, err := os.ReadFile("/usr/bin/id")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "id"), id, 0o755))
	require.NoError(t, os.Chmod(filepath.Join(dir, "id"), 0o755|os.ModeSetuid))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "text"), []byte("hello"), 0o644))
	return dir
}

// target makes a mount point that other users can reach.
func target(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "erofs-mount-")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() {
		// Whatever a failed test left mounted.
		for unix.Unmount(dir, unix.UMOUNT_NOFOLLOW) == nil {
		}
		require.NoError(t, os.Remove(dir))
	})
	return dir
}

// ended waits for the end of a superblock. Whoever has copied the mount table, as
// each process does that gets a mount namespace of its own, keeps it for a while.
func ended(t testing.TB, superblock string) {
	t.Helper()
	require.Eventually(t, func() bool { return !SuperblockAlive(superblock) }, 30*time.Second, time.Millisecond)
}

func openDescriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(entries)
}

func TestMountReadUnmount(t *testing.T) {
	image, dir := mkfs(t, sample(t)), target(t)
	fds := openDescriptors(t)
	info, err := Mount(context.Background(), MountConfig{Source: image, Target: dir, DirectIO: true, ReadAheadKB: 512})
	require.NoError(t, err)
	require.Equal(t, fds, openDescriptors(t))
	require.Equal(t, dir, info.Target)

	got, err := os.ReadFile(filepath.Join(dir, "text"))
	require.NoError(t, err)
	require.Equal(t, "hello", string(got))
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(dir))
	require.NoError(t, err)
	require.Len(t, mounts, 1)
	require.Equal(t, "erofs", mounts[0].FSType)
	require.Equal(t, image, mounts[0].Source)
	for _, o := range []string{"ro", "nosuid", "nodev"} {
		require.Contains(t, strings.Split(mounts[0].Options, ","), o)
	}
	require.Contains(t, mounts[0].VFSOptions, "directio")

	name, err := SuperblockOf(dir)
	require.NoError(t, err)
	require.Equal(t, info.Superblock, name)
	require.True(t, SuperblockAlive(name))
	kb, err := os.ReadFile("/sys/class/bdi/" + plainName(name) + "/read_ahead_kb")
	require.NoError(t, err)
	require.Equal(t, "512\n", string(kb))
	require.NoError(t, SetReadAhead(dir, 1024))

	require.NoError(t, Unmount(dir))
	ended(t, name)
	require.ErrorIs(t, Unmount(dir), unix.EINVAL)
	_, err = SuperblockOf(dir)
	require.ErrorIs(t, err, unix.EINVAL)
}

// Overlay keeps a layer's superblock alive after the layer is unmounted, and
// its own mount's flags decide about set-user-ID, not the layer's.
func TestOverlayOnNosuidLayer(t *testing.T) {
	image, lower, merged := mkfs(t, sample(t)), target(t), target(t)
	empty := t.TempDir()
	info, err := Mount(context.Background(), MountConfig{Source: image, Target: lower})
	require.NoError(t, err)
	require.NoError(t, unix.Mount("overlay", merged, "overlay", 0, "lowerdir="+lower+":"+empty))

	asNobody := func(path string) string {
		cmd := exec.Command(path)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		return string(out)
	}
	require.NotContains(t, asNobody(filepath.Join(lower, "id")), "euid=0")
	require.Contains(t, asNobody(filepath.Join(merged, "id")), "euid=0")

	require.NoError(t, Unmount(lower))
	require.True(t, SuperblockAlive(info.Superblock))
	require.NoError(t, Unmount(merged))
	ended(t, info.Superblock)
}

// The number of a superblock is free with it, and the next mount gets it.
func TestAnotherSuperblockOfTheSameName(t *testing.T) {
	image, dir := mkfs(t, sample(t)), target(t)
	first, err := Mount(context.Background(), MountConfig{Source: image, Target: dir})
	require.NoError(t, err)
	require.NoError(t, Unmount(dir))
	ended(t, first.Superblock)
	for range 50 { // others may take the number before us
		next, err := Mount(context.Background(), MountConfig{Source: image, Target: dir})
		require.NoError(t, err)
		require.True(t, SuperblockAlive(next.Superblock))
		require.False(t, SuperblockAlive(first.Superblock), "%s is taken for %s", next.Superblock, first.Superblock)
		again := plainName(next.Superblock) == plainName(first.Superblock)
		require.NoError(t, Unmount(dir))
		if again {
			return
		}
	}
}

func TestMountSuid(t *testing.T) {
	image, dir := mkfs(t, sample(t)), target(t)
	_, err := Mount(context.Background(), MountConfig{Source: image, Target: dir, Suid: true, Dev: true})
	require.NoError(t, err)
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(dir))
	require.NoError(t, err)
	require.NotContains(t, mounts[0].Options, "nosuid")
	require.NotContains(t, mounts[0].Options, "nodev")
	require.NoError(t, Unmount(dir))
}

func TestMountLongPath(t *testing.T) {
	image, dir := mkfs(t, sample(t)), target(t)
	long := filepath.Join(t.TempDir(), strings.Repeat("d", 200), strings.Repeat("e", 200))
	require.NoError(t, os.MkdirAll(long, 0o700))
	require.NoError(t, os.Rename(image, filepath.Join(long, "image")))
	fds := openDescriptors(t)
	_, err := Mount(context.Background(), MountConfig{Source: filepath.Join(long, "image"), Target: dir})
	require.NoError(t, err)
	require.Equal(t, fds, openDescriptors(t))
	require.FileExists(t, filepath.Join(dir, "text"))
	require.NoError(t, Unmount(dir))
}

// The kernel on which this runs has the ioctl; older ones find the name by the
// list of superblocks.
func TestSuperblockByList(t *testing.T) {
	image := mkfs(t, sample(t))
	mount, name, err := detachedByList(context.Background(), MountConfig{Source: image})
	require.NoError(t, err)
	defer mount.Close()
	asked, err := superblockName(int(mount.Fd()), ".")
	require.NoError(t, err)
	require.Equal(t, asked, name)
}

func TestOnlyNew(t *testing.T) {
	set := func(names ...string) map[string]bool {
		m := map[string]bool{}
		for _, n := range names {
			m[n] = true
		}
		return m
	}
	name, err := onlyNew(set("erofs-1"), set("erofs-1", "erofs-3"))
	require.NoError(t, err)
	require.Equal(t, "erofs-3", name)
	_, err = onlyNew(set(), set("erofs-1", "erofs-3"))
	require.ErrorIs(t, err, unix.EAGAIN)
	_, err = onlyNew(set("erofs-1"), set("erofs-1"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestMountRefusals(t *testing.T) {
	image, dir := mkfs(t, sample(t)), target(t)
	ctx := context.Background()
	fds := openDescriptors(t)

	_, err := Mount(ctx, MountConfig{Source: filepath.Join(dir, "none"), Target: dir})
	require.ErrorIs(t, err, unix.ENOENT)
	require.ErrorContains(t, err, filepath.Join(dir, "none"))

	shm, err := os.CreateTemp("/dev/shm", "erofs-")
	require.NoError(t, err)
	defer os.Remove(shm.Name())
	defer shm.Close()
	content, err := os.ReadFile(image)
	require.NoError(t, err)
	_, err = shm.Write(content)
	require.NoError(t, err)
	_, err = Mount(ctx, MountConfig{Source: shm.Name(), Target: dir})
	require.ErrorIs(t, err, ErrNeedsBlockDevice)
	require.ErrorIs(t, err, kernel.ErrNotSupported)
	require.ErrorIs(t, err, unix.ENOTBLK)

	zeros := filepath.Join(t.TempDir(), "zeros")
	require.NoError(t, os.WriteFile(zeros, make([]byte, 8192), 0o600))
	_, err = Mount(ctx, MountConfig{Source: zeros, Target: dir})
	require.ErrorIs(t, err, unix.EINVAL)

	// An image without device table, but a device.
	_, err = Mount(ctx, MountConfig{Source: image, Devices: []string{zeros}, Target: dir})
	require.Error(t, err)

	_, err = Mount(ctx, MountConfig{Source: image, Target: filepath.Join(dir, "missing")})
	require.ErrorIs(t, err, unix.ENOENT)

	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	_, err = Mount(cancelled, MountConfig{Source: image, Target: dir})
	require.ErrorIs(t, err, context.Canceled)

	require.Equal(t, fds+1, openDescriptors(t), "only shm's")
	mounted, err := mountinfo.Mounted(dir)
	require.NoError(t, err)
	require.False(t, mounted)
}

func TestSuperblockNames(t *testing.T) {
	for _, name := range []string{"features", "..", "erofs-", "erofs-x", "erofs-1/../features", "", "loop0/..", "loop1048575"} {
		require.False(t, SuperblockAlive(name), name)
	}
}
