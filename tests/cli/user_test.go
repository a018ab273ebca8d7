package cli

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// listEnv makes the test binary list a tree, which is how another user does it:
// root itself may not look into a user's FUSE mount.
const listEnv = "LAZYEROFS_TEST_LIST"

func TestMain(m *testing.M) {
	dir := os.Getenv(listEnv)
	if dir == "" {
		os.Exit(m.Run())
	}
	all, err := list(dir)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(all)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// wholeBelow is the size in bytes of files of which all content is compared; of
// larger ones both ends are, because a real image has hundreds of megabytes.
const wholeBelow = 64 << 10

// sum hashes the content of a file.
func sum(path string, size int64) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if size < wholeBelow {
		_, err = io.Copy(h, f)
	} else {
		for _, at := range []int64{0, size - wholeBelow/2} {
			_, cerr := io.Copy(h, io.NewSectionReader(f, at, wholeBelow/2))
			err = errors.Join(err, cerr)
		}
	}
	return fmt.Sprintf("%x", h.Sum(nil)), err
}

// list returns everything about every path of a tree that a user can see and that
// is the same in a merged tree as in overlayfs: link counts of directories are not.
func list(root string) (map[string]string, error) {
	all := map[string]string{}
	return all, filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		what := fmt.Sprintf("%o %d:%d %d %v", st.Mode, st.Uid, st.Gid, st.Rdev, st.Mtim)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			content, err := sum(path, st.Size)
			if err != nil {
				return err
			}
			what += fmt.Sprintf(" %d links, %d bytes %s", st.Nlink, st.Size, content)
		case unix.S_IFLNK:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			what += " " + to
		}
		buf := make([]byte, 4096)
		for _, name := range []string{"user.lazyerofs", "security.capability", "system.posix_acl_access"} {
			if n, err := unix.Lgetxattr(path, name, buf); err == nil {
				what += fmt.Sprintf(" %s=%x", name, buf[:n])
			}
		}
		all[rel] = what
		return nil
	})
}

// user is an ordinary one, with a home of its own and no session.
type user struct {
	*rig
	home string
	id   uint32
}

// nobody is a user that every system has, fusermount3 wants one with a name.
const nobody = 65534

func newUser(t *testing.T) *user {
	u := &user{rig: newRig(t), id: nobody}
	var err error
	u.home, err = os.MkdirTemp("", "lazyerofs-home-")
	require.NoError(t, err)
	t.Cleanup(func() {
		left, err := testenv.Mounts(u.home)
		require.NoError(t, err)
		require.Empty(t, left)
		require.NoError(t, os.RemoveAll(u.home))
	})
	t.Cleanup(u.end)
	openDevice(t)
	self, err := os.Executable()
	require.NoError(t, err)
	for from, name := range map[string]string{
		testenv.MustTool(t, "lazyerofs"): "lazyerofs", testenv.MustTool(t, "lazyerofsd"): "lazyerofsd", self: "list",
	} {
		b, err := os.ReadFile(from)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(u.home, name), b, 0o755))
	}
	for _, dir := range []string{"", "run", "mnt", "other"} {
		require.NoError(t, os.MkdirAll(filepath.Join(u.home, dir), 0o700))
		require.NoError(t, os.Chown(filepath.Join(u.home, dir), nobody, nobody))
	}
	require.NoError(t, os.Chmod(u.home, 0o711))
	return u
}

// openDevice gives everybody /dev/fuse, as the rules of udev do on every
// distribution; here nobody may have run them.
func openDevice(t *testing.T) {
	st, err := os.Stat("/dev/fuse")
	require.NoError(t, err)
	require.NoError(t, os.Chmod("/dev/fuse", 0o666))
	t.Cleanup(func() { require.NoError(t, os.Chmod("/dev/fuse", st.Mode().Perm())) })
}

// end takes away what a test that failed has left.
func (u *user) end() {
	pids, err := testenv.Processes(u.home)
	require.NoError(u.t, err)
	if len(pids) == 0 {
		return
	}
	require.True(u.t, u.t.Failed(), "processes are left: %d", pids)
	require.NoError(u.t, testenv.UnmountAll(u.home))
	for _, pid := range pids {
		_ = unix.Kill(pid, unix.SIGKILL) // may have ended
	}
}

// command is one of this user.
func (u *user) command(name string, args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(u.t.Context()), 3*time.Minute)
	u.t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = u.home
	cmd.Env = []string{"HOME=" + u.home, "PATH=/usr/bin:/bin", "XDG_RUNTIME_DIR=" + filepath.Join(u.home, "run")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: u.id, Gid: u.id}}
	return cmd
}

func (u *user) run(args ...string) (string, error) {
	out, err := u.command(filepath.Join(u.home, "lazyerofs"), args...).CombinedOutput()
	return string(out), err
}

func (u *user) must(args ...string) {
	if out, err := u.run(args...); err != nil {
		log, _ := os.ReadFile(filepath.Join(u.home, ".local/share/lazyerofs/daemon.log"))
		require.NoError(u.t, err, "%s\n%s", out, log)
	}
}

func (u *user) at(name string) string { return filepath.Join(u.home, name) }

// list lists a tree as this user.
func (u *user) list(dir string) map[string]string {
	cmd := u.command(u.at("list"))
	cmd.Env = append(cmd.Env, listEnv+"="+dir)
	var words strings.Builder
	cmd.Stderr = &words
	out, err := cmd.Output()
	require.NoError(u.t, err, words.String())
	var all map[string]string
	require.NoError(u.t, json.Unmarshal(out, &all))
	return all
}

// stopped waits until the daemon and its supervisor are gone.
func (u *user) stopped() {
	require.Eventually(u.t, func() bool {
		pids, err := testenv.Processes(u.home)
		return err == nil && len(pids) == 0
	}, 30*time.Second, 50*time.Millisecond)
}

// daemons returns the process ids of daemons without their supervisors.
func (u *user) daemons() []int {
	pids, err := testenv.Processes(u.home)
	require.NoError(u.t, err)
	var found []int
	for _, pid := range pids {
		cmdline, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
		if err == nil && strings.Contains(string(cmdline), "--rootless") && !strings.Contains(string(cmdline), "--supervise") {
			found = append(found, pid)
		}
	}
	return found
}

// truth lists what the kernel shows of an image: EROFS and overlayfs, as root.
func (u *user) truth(ref string) map[string]string {
	at := u.mkdir("truth")
	u.mustRun("mount", ref, at)
	all, err := list(at)
	require.NoError(u.t, err)
	u.mustRun("umount", at)
	u.waitStopped()
	return all
}
