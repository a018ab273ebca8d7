package cli

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

func TestAnOrdinaryUserMountsAndLeavesNothing(t *testing.T) {
	u := newUser(t)
	want := u.truth(u.ref)
	u.reg.Reset()
	u.must("mount", u.ref, "mnt")
	u.must("mount", "--rootless", u.ref, "other") // shares daemon and layers
	require.Equal(t, want, u.list(u.at("mnt")))
	require.Equal(t, want, u.list(u.at("other")))
	out, err := u.run("mount", u.ref, "mnt")
	require.Error(t, err)
	require.Contains(t, out, "mounted at "+u.at("mnt")+" already")
	for _, q := range u.reg.Log() {
		if q.Method == http.MethodGet && strings.Contains(q.Path, "/blobs/") && q.Range == "" {
			require.Less(t, q.Bytes, int64(64<<10), "a whole layer was fetched: %s", q.Path)
		}
	}
	got, err := u.command(u.at("mnt/hello"), u.at("mnt/etc/kept")).CombinedOutput()
	require.NoError(t, err, "%s", got)
	require.Equal(t, u.at("mnt/etc/kept")+": one\n", string(got))

	held := u.command("sleep", "60")
	held.Dir = u.at("mnt/etc")
	require.NoError(t, held.Start())
	out, err = u.run("umount", "mnt")
	require.Error(t, err)
	require.Contains(t, out, "close what is open below it")
	require.NoError(t, held.Process.Kill())
	_ = held.Wait() // killed
	u.must("umount", "mnt")
	require.Equal(t, want, u.list(u.at("other")))
	u.must("umount", "other")
	u.stopped()
	mounts, err := testenv.Mounts(u.home)
	require.NoError(t, err)
	require.Empty(t, mounts)
}

func TestRootlessRefusals(t *testing.T) {
	u := newUser(t)
	for _, c := range []struct{ args, want string }{
		{"mount --writable " + u.ref + " mnt", "--writable needs an overlay"},
		{"mount " + u.tars + " mnt", "lazyerofs convert " + u.tars},
		{"mount " + u.ref + " run/nowhere", "no such file or directory"},
		{"umount mnt", "no image is mounted at " + u.at("mnt")},
	} {
		out, err := u.run(strings.Fields(c.args)...)
		require.Error(t, err, c.args)
		require.Contains(t, out, c.want)
		require.Equal(t, 1, strings.Count(out, "\n"), out)
		u.stopped()
	}
	// Where there is no session, the directory of the socket must be the user's own.
	cmd := u.command(u.at("lazyerofs"), "umount", "mnt")
	cmd.Env = []string{"HOME=" + u.home, "PATH=/usr/bin:/bin", "TMPDIR=" + u.at("tmp")}
	require.NoError(t, os.MkdirAll(u.at("tmp/lazyerofs-65534"), 0o755))
	out, err := cmd.CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "you alone can enter")
}

func TestARootlessMountOutlivesItsDaemon(t *testing.T) {
	u := newUser(t)
	want := u.truth(u.ref)
	u.must("mount", u.ref, "mnt")
	first := u.list(u.at("mnt"))["etc/kept"] // something is open in the kernel
	require.Equal(t, want["etc/kept"], first)
	for range 3 {
		old := u.daemons()
		require.Len(t, old, 1)
		require.NoError(t, unix.Kill(old[0], unix.SIGKILL))
		require.NoError(t, testenv.DropCaches())
		require.Equal(t, want, u.list(u.at("mnt")), "asked while there was no daemon")
	}
	u.must("umount", "mnt")
	u.stopped()
}

// When nobody keeps the connection, the mount is dead; no byte of it is wrong.
func TestARootlessMountWithoutItsKeeperIsTakenAway(t *testing.T) {
	u := newUser(t)
	u.must("mount", u.ref, "mnt")
	pids, err := testenv.Processes(u.home)
	require.NoError(t, err)
	for _, pid := range pids {
		require.NoError(t, unix.Kill(pid, unix.SIGKILL))
	}
	u.stopped()
	out, err := u.command("/bin/cat", u.at("mnt/etc/kept")).CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "not connected")
	u.must("umount", "mnt")
	u.must("mount", u.ref, "mnt")
	require.Contains(t, u.list(u.at("mnt")), "etc/kept")
	u.must("umount", "mnt")
	u.stopped()
}

// A real image, and a program out of it.
func TestAnOrdinaryUserRunsPythonFromAnImage(t *testing.T) {
	u := newUser(t)
	recipe, err := testenv.Python(t.Context())
	require.NoError(t, err)
	img, err := recipe.Build(t.Context(), func(s string) { t.Log(s) })
	require.NoError(t, err)
	tars, ref := u.reg.Addr()+"/python:tar", u.reg.Addr()+"/python:lazy"
	require.NoError(t, img.Push(t.Context(), tars))
	// By the command, which is never built with the race detector.
	conv, err := exec.CommandContext(t.Context(), testenv.MustTool(t, "lazyerofs"), "convert", tars, ref).CombinedOutput()
	require.NoError(t, err, "%s", conv)
	want := u.truth(ref)

	u.reg.Reset()
	u.must("mount", ref, "mnt")
	root := u.at("mnt")
	libs := []string{}
	for _, dir := range []string{"lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/blas", "usr/lib/x86_64-linux-gnu/lapack"} {
		libs = append(libs, filepath.Join(root, dir))
	}
	cmd := u.command(filepath.Join(root, "lib64/ld-linux-x86-64.so.2"), "--library-path", strings.Join(libs, ":"),
		filepath.Join(root, "usr/bin/python3"), "-c", `import numpy; print("numpy", int(numpy.arange(10).sum()))`)
	cmd.Env = append(cmd.Env, "PYTHONHOME="+filepath.Join(root, "usr"), "PYTHONDONTWRITEBYTECODE=1")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Equal(t, "numpy 45\n", string(out))
	var fetched int64
	for _, q := range u.reg.Log() {
		fetched += q.Bytes
	}
	require.Less(t, fetched, img.Size()/2, "most of the image was not read")

	got := u.list(root)
	require.Len(t, got, len(want))
	for path := range want {
		require.Equal(t, want[path], got[path], path)
	}
	u.must("umount", "mnt")
	u.stopped()
}
