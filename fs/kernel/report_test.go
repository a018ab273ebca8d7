package kernel

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func splitLines(b []byte) []string { return strings.Split(string(b), "\n") }

func containsAny(s string, subs ...string) bool {
	for _, sub := range subs {
		if strings.Contains(s, sub) {
			return true
		}
	}
	return false
}

func find(t *testing.T, caps []Capability, name string) error {
	t.Helper()
	for _, c := range caps {
		if c.Name == name {
			return c.Err
		}
	}
	require.Fail(t, "capability is missing from the report", name)
	return nil
}

func TestReportHere(t *testing.T) {
	dir := t.TempDir()
	var caps []Capability
	noLeaks(t, dir, func() { caps = Report(dir) })
	for _, name := range []string{FileBackedEROFS, Overlay, PreContent, FUSE} {
		require.NoError(t, find(t, caps, name))
	}
	require.ErrorIs(t, find(t, caps, CachefilesOnDemand), ErrNotSupported)
	require.Len(t, caps, 5)
}

// A directory deeper than the 255 bytes of an fsconfig string.
func TestLongPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 200), strings.Repeat("e", 200))
	require.NoError(t, os.MkdirAll(dir, 0o700))
	require.NoError(t, HaveFileBackedEROFS(dir))
	require.NoError(t, HaveOverlay(dir))
	require.NoError(t, HavePreContent(dir))
}

func TestColonInPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a:b,c=d")
	require.NoError(t, os.Mkdir(dir, 0o700))
	require.NoError(t, HaveOverlay(dir))
}

// tmpfs takes neither an EROFS image nor a pre-content mark, whatever the
// kernel: the answer is about the directory.
func TestTmpfsIsRefused(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "lazyerofs-test-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	noLeaks(t, dir, func() {
		err = HaveFileBackedEROFS(dir)
		require.ErrorIs(t, err, ErrNotSupported)
		require.ErrorIs(t, err, unix.ENOTBLK)
		require.ErrorContains(t, err, "ext4")

		err = HavePreContent(dir)
		require.ErrorIs(t, err, ErrNotSupported)
		require.ErrorIs(t, err, unix.EOPNOTSUPP)
	})
}

// A cache directory that is not there says nothing about the kernel.
func TestMissingDirectoryIsInconclusive(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "missing")
	for _, err := range []error{HaveFileBackedEROFS(dir), HaveOverlay(dir), HavePreContent(dir)} {
		require.ErrorIs(t, err, os.ErrNotExist)
		require.NotErrorIs(t, err, ErrNotSupported)
	}
}

// In a user namespace we are root without power over the machine: everything
// but FUSE and overlay, which may be mounted there, is refused for good.
func TestUserNamespace(t *testing.T) {
	dir := t.TempDir()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	got := map[string]string{}
	for _, line := range splitLines(out) {
		name, answer, _ := strings.Cut(line, "\t")
		got[name] = answer
	}
	for _, name := range []string{FileBackedEROFS, PreContent} {
		require.Contains(t, got[name], "operation not permitted")
		require.Contains(t, got[name], ErrNotSupported.Error())
		require.Contains(t, got[name], "CAP_SYS_ADMIN")
	}
	require.Equal(t, "<nil>", got[FUSE])
}

func TestCachefilesDeviceRefusesCommands(t *testing.T) {
	dir := t.TempDir()
	noLeaks(t, dir, func() {
		// /dev/full opens and refuses every write: not the answer of a kernel
		// without on-demand mode.
		err := haveCachefiles("/dev/full", dir, mountByID)
		require.ErrorIs(t, err, unix.ENOSPC)
		require.NotErrorIs(t, err, ErrNotSupported)
	})
}

func TestRefusal(t *testing.T) {
	hints := map[unix.Errno]string{unix.ENOTBLK: "use a loop device"}
	err := refusal("mounting", &FSError{FSType: "erofs", Step: "x", Err: unix.ENOTBLK, Log: "words"}, hints)
	require.ErrorIs(t, err, ErrNotSupported)
	require.ErrorIs(t, err, unix.ENOTBLK)
	require.ErrorContains(t, err, "use a loop device")
	require.ErrorContains(t, err, "kernel: words")

	for _, conclusive := range []error{unix.EPERM, unix.ENOSYS} {
		require.ErrorIs(t, refusal("mounting", conclusive, hints), ErrNotSupported)
	}
	for _, passing := range []error{unix.ENOMEM, unix.EMFILE, unix.ENOSPC, errors.New("odd")} {
		err := refusal("mounting", passing, hints)
		require.ErrorIs(t, err, passing)
		require.NotErrorIs(t, err, ErrNotSupported)
	}
}

func TestFSContextErrors(t *testing.T) {
	_, err := OpenFS("no-such-fs")
	require.ErrorIs(t, err, unix.ENODEV)

	ctx, err := OpenFS("erofs")
	require.NoError(t, err)
	defer ctx.Close()
	err = ctx.SetString("nonsense", "1")
	require.ErrorIs(t, err, unix.EINVAL)
	require.ErrorContains(t, err, "Unknown parameter 'nonsense'", "the kernel's own words")
	require.ErrorIs(t, ctx.SetString("source", strings.Repeat("x", 300)), unix.EINVAL)
	var fe *FSError
	require.ErrorAs(t, ctx.SetFlag("more-nonsense"), &fe)
	require.Equal(t, "erofs", fe.FSType)
	require.Contains(t, fe.Log, "more-nonsense")
	require.NotContains(t, fe.Log, "'nonsense'", "the log is drained by each error")
}

func TestDescribe(t *testing.T) {
	dir := t.TempDir()
	f, err := Describe(dir)
	require.NoError(t, err)
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	require.NoError(t, err)
	require.Equal(t, strings.TrimSpace(string(release)), f.Release)
	require.True(t, f.Root)
	require.True(t, f.SysAdmin)
	require.True(t, f.InitUserNS)
	require.Equal(t, os.Getpagesize(), f.PageSize)
	require.NotZero(t, f.FreeBytes)
	require.True(t, strings.HasPrefix(dir, f.MountPoint))

	shm, err := Describe("/dev/shm")
	require.NoError(t, err)
	require.Equal(t, "tmpfs", shm.FSType)
	require.Equal(t, "/dev/shm", shm.MountPoint)

	_, err = Describe(filepath.Join(dir, "missing"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestFindMount(t *testing.T) {
	const table = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n" +
		"nonsense\n23 22 0:21 / /x\\040y rw - tmpfs tmpfs rw\n"
	for id, want := range map[string][2]string{"22": {"ext4", "/"}, "23": {"tmpfs", "/x\\040y"}} {
		fstype, point, err := findMount(bufio.NewScanner(strings.NewReader(table)), id)
		require.NoError(t, err)
		require.Equal(t, want, [2]string{fstype, point})
	}
	_, _, err := findMount(bufio.NewScanner(strings.NewReader(table)), "24")
	require.Error(t, err)
}
