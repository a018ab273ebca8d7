//go:build guest

package verity

import (
	"bytes"
	"context"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/dmverity"
	"github.com/lazyerofs/lazyerofs/fs/fsverity"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
	"github.com/lazyerofs/lazyerofs/tests/vm/image"
)

// patience bounds waits for what must happen; a guest is slow.
const patience = 3 * time.Minute

// TestThisGuestHasBoth is what makes the other packages' tests in this guest mean
// something: they ask the same and go by the answer.
func TestThisGuestHasBoth(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, dmverity.Probe(dir))
	require.NoError(t, fsverity.Probe(dir))
	out, err := command(t, "lazyerofs", "doctor", "--json", "--root", dir).Output()
	require.NotEmpty(t, out, "%v", err)
	var report struct {
		Integrity []struct {
			Name string
			OK   bool
		}
	}
	require.NoError(t, json.Unmarshal(out, &report))
	require.Len(t, report.Integrity, 2)
	for _, c := range report.Integrity {
		require.True(t, c.OK, c.Name)
	}
}

func command(t *testing.T, name string, args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
	t.Cleanup(cancel)
	return exec.CommandContext(ctx, testenv.MustTool(t, name), args...)
}

// rig is a daemon, and a registry with an image whose layers have hash trees.
type rig struct {
	*testing.T
	dir    string
	img    *image.Image
	ref    string
	daemon *testenv.Daemon
	at     string
}

// publish puts the image into a registry; converting takes its time in a guest.
func (r *rig) publish() {
	var err error
	r.img, err = image.New(1)
	require.NoError(r, err)
	reg, err := testenv.StartRegistry(filepath.Join(r.dir, "registry"))
	require.NoError(r, err)
	r.Cleanup(func() { require.NoError(r, reg.Close()) })
	tars := reg.Addr() + "/img:tar"
	r.ref = reg.Addr() + "/img:verity"
	require.NoError(r, r.img.Push(r.Context(), tars))
	r.run("convert", "-q", "--dm-verity", "--work-dir", filepath.Join(r.dir, "work"), tars, r.ref)
}

// start has [verity] as the daemon's configuration.
func start(t *testing.T, verity map[string]any) *rig {
	r := &rig{T: t, dir: t.TempDir()}
	var err error
	r.daemon, err = testenv.StartDaemon(t.Context(), filepath.Join(r.dir, "daemon"), testenv.DaemonOptions{
		Supervise: true, Config: map[string]any{"verity": verity},
	})
	require.NoError(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := r.daemon.Log()
			t.Log(log)
		}
		require.NoError(t, testenv.UnmountAll(r.dir))
		require.NoError(t, r.daemon.Stop())
	})
	r.at = filepath.Join(r.dir, "m")
	require.NoError(t, os.Mkdir(r.at, 0o755))
	return r
}

func (r *rig) run(args ...string) {
	r.Helper()
	out, err := command(r.T, "lazyerofs", args...).CombinedOutput()
	require.NoError(r, err, "%s", out)
}

func (r *rig) mount() {
	r.Helper()
	r.run("mount", "--root", r.daemon.Root, "--address", r.daemon.Socket, r.ref, r.at)
}

func (r *rig) umount() {
	r.Helper()
	r.run("umount", "--root", r.daemon.Root, "--address", r.daemon.Socket, r.at)
	require.Eventually(r, func() bool { return len(r.layers()) == 0 }, patience, 20*time.Millisecond)
}

// layers are the mounts of layers: mount points and sources.
func (r *rig) layers() map[string]string {
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(filepath.Join(r.daemon.Root, "l")))
	require.NoError(r, err)
	all := map[string]string{}
	for _, i := range infos {
		all[i.Mountpoint] = i.Source
	}
	return all
}

// readAll reads every file of every layer, also those that others hide.
func (r *rig) readAll() {
	r.Helper()
	for at := range r.layers() {
		require.NoError(r, filepath.WalkDir(at, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				_, err = os.ReadFile(path)
			}
			return err
		}))
	}
}

// data are the data files of the layers in the cache.
func (r *rig) data() []string {
	files, err := filepath.Glob(filepath.Join(r.daemon.Root, "cache", "layers", "*", "data"))
	require.NoError(r, err)
	require.Len(r, files, r.img.Layers())
	return files
}

func (r *rig) throughDM() bool {
	r.Helper()
	layers := r.layers()
	require.Len(r, layers, r.img.Layers())
	n := 0
	for _, source := range layers {
		if strings.HasPrefix(source, "/dev/dm-") {
			n++
		}
	}
	require.True(r, n == 0 || n == len(layers), "%v", layers)
	return n > 0
}

// kill kills the daemon under its supervisor and waits for the next one.
func (r *rig) kill() {
	r.Helper()
	started := func() int {
		log, err := r.daemon.Log()
		require.NoError(r, err)
		return strings.Count(log, "lazyerofsd serves")
	}
	before := started()
	pids, err := testenv.Processes(r.daemon.Root)
	require.NoError(r, err)
	for _, pid := range pids {
		if pid != r.daemon.Pid() {
			require.NoError(r, unix.Kill(pid, unix.SIGKILL))
		}
	}
	require.Eventually(r, func() bool { return started() > before }, patience, 10*time.Millisecond)
}

func (r *rig) compare() {
	r.Helper()
	require.NoError(r, testenv.DropCaches())
	require.NoError(r, r.img.Compare(r.at))
}

// devices lists what device mapper has of ours.
func (r *rig) devices() (names []string) {
	all, err := filepath.Glob("/sys/block/dm-*/dm/name")
	require.NoError(r, err)
	for _, n := range all {
		b, err := os.ReadFile(n)
		if err == nil && bytes.HasPrefix(b, []byte("lazyerofs-")) {
			names = append(names, string(b))
		}
	}
	return names
}

// TestCompleteLayers: what was loaded lazily is sealed while it is mounted, once the
// keeper has let go of its writer; survives kills of the daemon; and is mounted
// through dm-verity the next time.
func TestCompleteLayers(t *testing.T) {
	r := start(t, map[string]any{"dm": true, "fs": true})
	r.publish()
	r.run("verify", "-q", "--work-dir", filepath.Join(r.dir, "work"), r.ref)
	r.mount()
	require.False(t, r.throughDM(), "they are not complete")
	r.compare()
	r.readAll()
	sealed := func(file string) bool {
		_, err := os.Stat(filepath.Join(filepath.Dir(file), "fsverity"))
		return err == nil
	}
	for _, file := range r.data() {
		require.Eventually(t, func() bool { return sealed(file) }, patience, 20*time.Millisecond, file)
		_, err := os.OpenFile(file, os.O_RDWR, 0)
		require.ErrorIs(t, err, unix.EPERM)
	}
	r.kill()
	r.compare()
	r.umount()
	r.mount()
	require.True(t, r.throughDM())
	require.Len(t, r.devices(), r.img.Layers())
	r.compare()
	r.kill()
	r.compare()
	r.umount()
	require.Eventually(t, func() bool { return len(r.devices()) == 0 }, patience, 20*time.Millisecond)
	for _, file := range r.data() {
		require.True(t, sealed(file))
	}
}

// TestChangedOnDisk: a byte of a complete layer that somebody changed is an error
// for who reads it, and the rest goes on.
func TestChangedOnDisk(t *testing.T) {
	r := start(t, map[string]any{"dm": true})
	r.publish()
	r.mount()
	r.readAll()
	const victim = "usr/lib/big3"
	want := r.img.Files[victim]
	require.Eventually(t, func() bool {
		log, err := r.daemon.Log()
		return err == nil && strings.Count(log, "layer is complete") >= r.img.Layers()
	}, patience, 100*time.Millisecond)
	r.umount()
	found := false
	for _, file := range r.data() {
		b, err := os.ReadFile(file)
		require.NoError(t, err)
		if at := bytes.Index(b, want[:8192]); at >= 0 {
			w, err := os.OpenFile(file, os.O_RDWR, 0)
			require.NoError(t, err, "it is not sealed")
			_, err = w.WriteAt([]byte{b[at+5000] ^ 1}, int64(at)+5000)
			require.NoError(t, err)
			require.NoError(t, w.Close())
			found = true
		}
	}
	require.True(t, found)
	require.NoError(t, testenv.DropCaches())
	r.mount()
	require.True(t, r.throughDM())
	_, err := os.ReadFile(filepath.Join(r.at, victim))
	require.ErrorIs(t, err, unix.EIO)
	got, err := os.ReadFile(filepath.Join(r.at, "usr/lib/big2"))
	require.NoError(t, err)
	require.True(t, bytes.Equal(r.img.Files["usr/lib/big2"], got))
	r.umount()
}
