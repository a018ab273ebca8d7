package crash

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/klauspost/compress/gzip"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// line is slow, so that at any moment some reader waits for it.
var line = testenv.Profile{RTT: 10 * time.Millisecond, BytesPerSecond: 20_000_000}

// recipe is an image of three layers that the others hide in part, with many
// small files and some large ones. Random bytes do not compress and are never
// zero for long.
func recipe() testenv.Recipe {
	return testenv.Recipe{Name: "crash", Steps: []testenv.Step{
		{Name: "large files", Script: `mkdir "$ROOT/large"
for i in 0 1 2 3 4 5 6 7 8 9 10 11; do head -c $((1000000 + i * 300001)) /dev/urandom >"$ROOT/large/$i"; done
`},
		{Name: "small files", Script: `mkdir "$ROOT/small"
for i in $(seq 600); do head -c $((1 + i * 73)) /dev/urandom >"$ROOT/small/$i"; done
`},
		{Name: "changes", Script: `rm "$ROOT/large/3" "$ROOT/small/77"
head -c 5000000 /dev/urandom >"$ROOT/large/7"
mkdir "$ROOT/new"
for i in $(seq 40); do head -c $((i * 9001)) /dev/urandom >"$ROOT/new/$i"; done
`},
	}}
}

// tools builds what is tested, once.
var tools = sync.OnceValue(func() error {
	root, err := testenv.Root()
	if err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(root, "bin")+"/", "./cmd/lazyerofsd", "./cmd/lazyerofs")
	cmd.Dir, cmd.Stdout, cmd.Stderr = root, os.Stderr, os.Stderr
	return cmd.Run()
})

// world is a registry behind a slow line, an image in it, what the image holds,
// and a supervised daemon.
type world struct {
	*testing.T
	dir, ref     string
	truth, mount string
	names        []string // of the files
	gate         *gate
	daemon       *testenv.Daemon
}

func newWorld(t *testing.T, driver string) *world {
	testenv.RequireRoot(t)
	require.NoError(t, tools())
	w := &world{T: t, dir: t.TempDir()}
	testenv.VerifyNoLeaks(t, w.dir)
	w.truth, w.mount = filepath.Join(w.dir, "truth"), filepath.Join(w.dir, "mnt")
	require.NoError(t, os.Mkdir(w.mount, 0o755))
	reg, err := testenv.StartRegistry(filepath.Join(w.dir, "registry"))
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, reg.Close())
		http.DefaultClient.CloseIdleConnections() //nolint:forbidigo // oras-go's, which pushed the image
	})
	img, err := recipe().Build(t.Context(), func(s string) { t.Log("building", s) })
	require.NoError(t, err)
	w.unpack(img)
	require.NoError(t, img.Push(t.Context(), reg.Addr()+"/crash:tar"))
	w.convert(reg.Addr()+"/crash:tar", reg.Addr()+"/crash:lazy")

	shaper, err := testenv.StartShaper(reg.Addr(), line)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, shaper.Close()) })
	w.gate, err = newGate(shaper.Addr())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.gate.shut()) })
	w.ref = w.gate.addr + "/crash:lazy"

	w.daemon, err = testenv.StartDaemon(t.Context(), filepath.Join(w.dir, "d"), testenv.DaemonOptions{
		Supervise: true,
		Config:    map[string]any{"driver": map[string]any{"name": driver}, "snapshotter": map[string]any{"strict": true}},
	})
	require.NoError(t, err)
	t.Cleanup(w.stop)
	return w
}

// stop ends the daemon; what hangs on it must go first.
func (w *world) stop() {
	_ = unix.Unmount(w.mount, unix.MNT_DETACH)
	if err := w.daemon.Stop(); err != nil && !w.Failed() {
		require.NoError(w, err)
	}
	if w.Failed() {
		log, err := w.daemon.Log()
		w.Logf("the daemon's log (%v) ends with:\n%s", err, log[max(0, len(log)-20_000):])
	}
}

// unpack lays the tar layers over each other: the truth.
func (w *world) unpack(img *testenv.Image) {
	require.NoError(w, os.Mkdir(w.truth, 0o755))
	for _, l := range img.Layers {
		blob, err := os.Open(filepath.Join(img.Dir, "blobs", "sha256", l.Digest.Encoded()))
		require.NoError(w, err)
		tar, err := gzip.NewReader(blob)
		require.NoError(w, err)
		_, err = archive.Apply(w.Context(), w.truth, tar)
		require.NoError(w, err)
		require.NoError(w, blob.Close())
	}
	require.NoError(w, filepath.WalkDir(w.truth, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			w.names = append(w.names, strings.TrimPrefix(path, w.truth+"/"))
		}
		return err
	}))
}

func (w *world) convert(src, dst string) {
	hosts := docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost))
	s, err := converter.ParseSource(src, hosts)
	require.NoError(w, err)
	defer func() { require.NoError(w, s.Close()) }()
	d, err := converter.ParseTarget(dst, hosts)
	require.NoError(w, err)
	defer func() { require.NoError(w, d.Close()) }()
	_, err = converter.Image(w.Context(), s, d, converter.Options{WorkDir: w.dir})
	require.NoError(w, err)
}

// lazyerofs runs the command with our daemon.
func (w *world) lazyerofs(verb string, args ...string) {
	w.Helper()
	out, err := w.try(verb, args...)
	require.NoError(w, err, "%s", out)
}

func (w *world) try(verb string, args ...string) (string, error) {
	bin := testenv.MustTool(w.T, "lazyerofs")
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.Context()), time.Minute)
	defer cancel()
	args = append([]string{verb, "--root", w.daemon.Root, "--address", w.daemon.Socket}, args...)
	out, err := exec.CommandContext(ctx, bin, args...).CombinedOutput()
	return string(out), err
}

// up mounts the image with nothing of it in the cache.
func (w *world) up() { w.lazyerofs("mount", w.ref, w.mount) }

// down unmounts the image and empties the cache, once nothing uses a layer.
func (w *world) down() {
	w.Helper()
	w.lazyerofs("umount", w.mount)
	layers, err := filepath.Glob(filepath.Join(w.daemon.Root, "cache", "layers", "*"))
	require.NoError(w, err)
	require.Len(w, layers, 3)
	for _, dir := range layers {
		require.Eventually(w, func() bool { return unused(dir) }, time.Minute, 10*time.Millisecond, dir)
		require.NoError(w, os.RemoveAll(dir))
	}
}

// unused reports whether no daemon has the layer in dir open: it locks what it
// has.
func unused(dir string) bool {
	d, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer func() { _ = d.Close() }()
	return unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil
}

// free ends whoever holds what readers wait for: some cannot be killed before.
func (w *world) free() {
	keeper := w.daemon.Pid()
	_ = unix.Kill(keeper, unix.SIGSTOP)
	for _, pid := range testenv.ChildrenOf(keeper) {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	_ = unix.Kill(keeper, unix.SIGKILL)
}

// readers are processes that read the image.
type readers struct {
	w    *world
	left chan struct{} // one value for each that has ended
	wg   sync.WaitGroup
	stop context.CancelFunc

	mu    sync.Mutex
	found findings
	errs  []error
}

// read starts n readers, which share the files.
func (w *world) read(n int) *readers {
	names := append([]string{}, w.names...)
	rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	ctx, cancel := context.WithTimeout(w.Context(), 20*time.Minute)
	r := &readers{w: w, left: make(chan struct{}, n), stop: cancel}
	self, err := os.Executable()
	require.NoError(w, err)
	for i := range n {
		var mine []string
		for j := i; j < len(names); j += n {
			mine = append(mine, names[j])
		}
		cmd := exec.CommandContext(ctx, self)
		cmd.Env = append(os.Environ(), roleEnv+"=reader", dirEnv+"="+w.mount, truthEnv+"="+w.truth)
		cmd.Stdin = strings.NewReader(strings.Join(mine, "\n"))
		cmd.Cancel = func() error {
			w.free()
			return cmd.Process.Kill()
		}
		r.wg.Go(func() { r.run(cmd) })
	}
	return r
}

func (r *readers) run(cmd *exec.Cmd) {
	var out, trouble bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &trouble
	err := cmd.Run()
	var f findings
	if err == nil {
		err = json.Unmarshal(out.Bytes(), &f)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.found.add(f)
	if err != nil {
		r.errs = append(r.errs, fmt.Errorf("a reader did not finish: %w: %s", err, trouble.String()))
	}
	r.left <- struct{}{}
}

// ended returns how many have ended since it was last called.
func (r *readers) ended() (n int) {
	for {
		select {
		case <-r.left:
			n++
		default:
			return n
		}
	}
}

// wait returns what was found once every reader has finished.
func (r *readers) wait() findings {
	r.wg.Wait()
	r.stop()
	require.Empty(r.w, r.errs)
	return r.found
}
