package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
	"github.com/lazyerofs/lazyerofs/tests/trees"
)

// rig is a registry with one lazy image, and a place for the daemon.
type rig struct {
	t    *testing.T
	reg  *testenv.Registry
	dir  string
	ref  string
	tars string
}

func newRig(t *testing.T) *rig {
	testenv.RequireRoot(t)
	r := &rig{t: t, dir: t.TempDir()}
	testenv.VerifyNoLeaks(t, r.dir)
	var err error
	r.reg, err = testenv.StartRegistry(filepath.Join(r.dir, "registry"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.reg.Close()) })
	recipe, err := testenv.Tiny()
	require.NoError(t, err)
	img, err := recipe.Build(t.Context(), func(s string) { t.Log(s) })
	require.NoError(t, err)
	r.tars = r.reg.Addr() + "/tiny:tar"
	require.NoError(t, img.Push(t.Context(), r.tars))
	r.ref = r.reg.Addr() + "/tiny:lazy"
	r.convert(r.tars, r.ref)
	return r
}

func (r *rig) convert(src, dst string) {
	hosts := docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost))
	s, err := converter.ParseSource(src, hosts)
	require.NoError(r.t, err)
	defer func() { require.NoError(r.t, s.Close()) }()
	d, err := converter.ParseTarget(dst, hosts)
	require.NoError(r.t, err)
	defer func() { require.NoError(r.t, d.Close()) }()
	_, err = converter.Image(r.t.Context(), s, d, converter.Options{WorkDir: r.dir})
	require.NoError(r.t, err)
}

// lazyerofs runs the command with this rig's daemon.
func (r *rig) lazyerofs(verb string, args ...string) (string, error) {
	bin := testenv.MustTool(r.t, "lazyerofs")
	args = append([]string{verb, "--root", filepath.Join(r.dir, "state"), "--address", filepath.Join(r.dir, "s.sock")}, args...)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.t.Context()), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, bin, args...).CombinedOutput()
	return string(out), err
}

func (r *rig) mustRun(verb string, args ...string) {
	out, err := r.lazyerofs(verb, args...)
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(r.dir, "state", "daemon.log"))
		require.NoError(r.t, err, "%s\n%s", out, log)
	}
}

// mkdir makes a mount point.
func (r *rig) mkdir(name string) string {
	dir := filepath.Join(r.dir, name)
	require.NoError(r.t, os.Mkdir(dir, 0o755))
	return dir
}

// waitStopped waits until the daemon and its supervisor are gone.
func (r *rig) waitStopped() {
	require.Eventually(r.t, func() bool {
		pids, err := testenv.Processes(filepath.Join(r.dir, "state"))
		return err == nil && len(pids) == 0
	}, 30*time.Second, 50*time.Millisecond)
}

func TestMountReadsAnImageLazilyAndLeavesNothing(t *testing.T) {
	r := newRig(t)
	r.reg.Reset()
	at := r.mkdir("mnt")
	r.mustRun("mount", r.ref, at)

	// Twice at once: the second mount shares the daemon and the layers.
	other := r.mkdir("other")
	r.mustRun("mount", "--writable", r.ref, other)
	diffs, err := trees.Compare(at, other)
	require.NoError(t, err)
	for _, d := range diffs {
		require.Contains(t, d, ".: mtime", "only the new upper directory is younger")
	}
	require.NoError(t, os.WriteFile(filepath.Join(other, "new"), []byte("x"), 0o644))
	require.NoFileExists(t, filepath.Join(at, "new"))

	out, err := r.lazyerofs("mount", r.ref, at)
	require.Error(t, err)
	require.Contains(t, out, "mounted at "+at+" already")

	for _, q := range r.reg.Log() {
		if q.Method == http.MethodGet && strings.Contains(q.Path, "/blobs/") && q.Range == "" {
			require.Less(t, q.Bytes, int64(64<<10), "a whole layer was fetched: %s", q.Path)
		}
	}
	r.mustRun("umount", at)
	require.FileExists(t, filepath.Join(other, "new"))
	r.mustRun("umount", other)
	r.waitStopped()
}

// TestMountByRelativePaths gives all paths as they are from here; the daemon, which
// finds the registry under its name only with them, works elsewhere.
func TestMountByRelativePaths(t *testing.T) {
	r := newRig(t)
	at := r.mkdir("mnt")
	hosts := filepath.Join(r.dir, "certs", "registry.test")
	require.NoError(t, os.MkdirAll(hosts, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(hosts, "hosts.toml"), []byte(fmt.Sprintf("server = %q\n", "http://"+r.reg.Addr())), 0o644))
	run := func(args ...string) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, testenv.MustTool(t, "lazyerofs"), append(args, "--root", "state", "--address", "s.sock")...)
		cmd.Dir = r.dir
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	run("mount", "--hosts-dir", "certs", "registry.test/tiny:lazy", "mnt")
	want := r.mkdir("other")
	r.mustRun("mount", r.ref, want)
	diffs, err := trees.Compare(at, want)
	require.NoError(t, err)
	require.Empty(t, diffs)
	run("umount", "mnt")
	r.mustRun("umount", want)
	r.waitStopped()
}

func TestMountRefusesTarLayersWithOneSentence(t *testing.T) {
	r := newRig(t)
	at := r.mkdir("mnt")
	out, err := r.lazyerofs("mount", r.tars, at)
	require.Error(t, err)
	require.Contains(t, out, "cannot be loaded lazily")
	require.Contains(t, out, "lazyerofs convert "+r.tars)
	require.Equal(t, 1, strings.Count(out, "\n"), out)
	r.waitStopped()
}

// TestUmountOfNothingLeavesNothing: no daemon is started where none ever was, and one
// that is started to look does not stay.
func TestUmountOfNothingLeavesNothing(t *testing.T) {
	r := newRig(t)
	at, state := r.mkdir("mnt"), filepath.Join(r.dir, "state")
	refused := func() {
		t.Helper()
		out, err := r.lazyerofs("umount", at)
		require.Error(t, err)
		require.Equal(t, "lazyerofs: no image is mounted at "+at+" by lazyerofs\n", out)
		r.waitStopped()
	}
	refused()
	require.NoDirExists(t, state)
	require.NoError(t, os.Mkdir(state, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(state, "config.toml"), nil, 0o600))
	refused()
	require.FileExists(t, filepath.Join(state, "daemon.log"), "a daemon has looked")
	refused()
}

func TestMountOutlivesItsDaemon(t *testing.T) {
	r := newRig(t)
	at, truth := r.mkdir("mnt"), r.mkdir("truth")
	r.mustRun("mount", r.ref, truth)
	r.mustRun("mount", r.ref, at)
	// The supervisor's child is the one without --supervise.
	pids, err := testenv.Processes(filepath.Join(r.dir, "state"))
	require.NoError(t, err)
	var killed int
	for _, pid := range pids {
		cmdline, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
		require.NoError(t, err)
		if !strings.Contains(string(cmdline), "--supervise") {
			p, err := os.FindProcess(pid)
			require.NoError(t, err)
			require.NoError(t, p.Kill())
			killed++
		}
	}
	require.Equal(t, 1, killed)
	require.NoError(t, testenv.DropCaches())
	diffs, err := trees.Compare(truth, at)
	require.NoError(t, err)
	require.Empty(t, diffs)
	r.mustRun("umount", at)
	r.mustRun("umount", truth)
	r.waitStopped()
}

func TestInspectTellsLazyFromNot(t *testing.T) {
	r := newRig(t)
	bin := testenv.MustTool(t, "lazyerofs")
	for ref, lazy := range map[string]bool{r.ref: true, r.tars: false} {
		out, err := exec.CommandContext(t.Context(), bin, "inspect", "--json", ref).Output()
		require.NoError(t, err)
		var report struct {
			Lazy   bool
			Layers []struct{ Lazy bool }
		}
		require.NoError(t, json.Unmarshal(out, &report))
		require.Equal(t, lazy, report.Lazy)
		require.Len(t, report.Layers, 3)
	}
}
