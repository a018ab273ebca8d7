//go:build guest

package lazy

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/tests/testenv"
	"github.com/lazyerofs/lazyerofs/tests/vm/image"
)

// patience bounds waits for what must happen; a guest is slow.
const patience = 3 * time.Minute

// maxKills bounds the kills of a round: a daemon that is killed as soon as it comes
// up gets nothing done, and a guest is slow.
const maxKills = 5

// rig is a registry with one lazy image, and a place for the daemon.
type rig struct {
	*testing.T
	dir   string
	img   *image.Image
	reg   *testenv.Registry
	ref   string
	state string
}

func newRig(t *testing.T) *rig {
	img, err := image.New(1)
	require.NoError(t, err)
	r := &rig{T: t, dir: t.TempDir(), img: img}
	r.state = filepath.Join(r.dir, "state")
	r.reg, err = r.img.Serve(t.Context(), r.dir)
	if r.reg != nil {
		t.Cleanup(func() { require.NoError(t, r.reg.Close()) })
	}
	require.NoError(t, err)
	r.ref = r.reg.Addr() + "/img:lazy"
	return r
}

// lazyerofs runs the command with this rig's daemon.
func (r *rig) lazyerofs(verb string, args ...string) {
	r.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), patience)
	defer cancel()
	args = append([]string{verb, "--root", r.state, "--address", filepath.Join(r.dir, "s.sock")}, args...)
	out, err := exec.CommandContext(ctx, testenv.MustTool(r, "lazyerofs"), args...).CombinedOutput()
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(r.state, "daemon.log"))
		require.NoError(r, err, "%s\n%s", out, log)
	}
}

// daemons are the processes of the daemon but its supervisor.
func (r *rig) daemons() []int {
	pids, err := testenv.Processes(r.state)
	require.NoError(r, err)
	var list []int
	for _, pid := range pids {
		line, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
		if err == nil && len(line) > 0 && !strings.Contains(string(line), "--supervise") {
			list = append(list, pid)
		}
	}
	return list
}

// starts counts how often a daemon has come up.
func (r *rig) starts() int {
	log, err := os.ReadFile(filepath.Join(r.state, "daemon.log"))
	require.NoError(r, err)
	return strings.Count(string(log), "lazyerofsd serves")
}

// kill kills the daemon and waits until the next one serves: one that is killed
// before answers nobody.
func (r *rig) kill() {
	old, before := r.daemons(), r.starts()
	require.Len(r, old, 1)
	require.NoError(r, unix.Kill(old[0], unix.SIGKILL))
	require.Eventually(r, func() bool {
		now := r.daemons()
		return len(now) == 1 && now[0] != old[0] && r.starts() > before
	}, patience, 10*time.Millisecond)
}

// count is the number of regular files below root.
func count(root string) (n int, err error) {
	err = filepath.WalkDir(root, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			n++
		}
		return err
	})
	return n, err
}

// served checks that the driver that this guest is about made the mounts.
func (r *rig) served() {
	log, err := os.ReadFile(filepath.Join(r.state, "daemon.log"))
	require.NoError(r, err)
	for _, l := range strings.Split(string(log), "\n") {
		if strings.Contains(l, "msg=\"driver ") {
			r.Log(l)
		}
	}
	found := 0
	records, err := filepath.Glob(filepath.Join(r.state, "cache", "*", "*", "meta.json"))
	require.NoError(r, err)
	for _, f := range records {
		b, err := os.ReadFile(f)
		if err == nil && len(b) < 1<<16 && bytes.Contains(b, []byte(`"`+os.Getenv(Env)+`"`)) {
			found++
		}
	}
	require.Equal(r, r.img.Layers(), found, "layers that %s serves; %q", os.Getenv(Env), records)
}

func TestLazyMount(t *testing.T) {
	r := newRig(t)
	at := filepath.Join(r.dir, "mnt")
	require.NoError(t, os.Mkdir(at, 0o755))
	r.reg.Reset()
	r.lazyerofs("mount", r.ref, at)
	r.served()
	for _, q := range r.reg.Log() {
		if strings.Contains(q.Path, "/blobs/") && q.Range == "" {
			require.Less(t, q.Bytes, int64(64<<10), "a whole layer was fetched: %s", q.Path)
		}
	}
	n, err := count(at)
	require.NoError(t, err)
	require.Equal(t, len(r.img.Files), n)
	require.NoError(t, r.img.Compare(at))
	require.NoError(t, testenv.DropCaches())
	require.NoError(t, r.img.Compare(at))
	r.end(at)
}

// The daemon is killed while cold reads are under way: each gives the right bytes.
func TestKilledUnderReaders(t *testing.T) {
	r := newRig(t)
	for round := range 2 {
		// A new root, so that nothing is there yet.
		r.state = filepath.Join(r.dir, "state"+strconv.Itoa(round))
		at := filepath.Join(r.dir, "mnt"+strconv.Itoa(round))
		require.NoError(t, os.Mkdir(at, 0o755))
		r.lazyerofs("mount", r.ref, at)
		var readers sync.WaitGroup
		errs := make([]error, 3)
		for i := range errs {
			readers.Go(func() { errs[i] = r.img.Compare(at) })
		}
		done := make(chan struct{})
		go func() { readers.Wait(); close(done) }()
		kills := 0
		wait := 20 * time.Millisecond // where the machine is quick, all is read within a second
		for reading := true; reading && kills < maxKills; {
			select {
			case <-done:
				reading = false
			case <-time.After(time.Duration(rand.Int64N(int64(wait)))):
				r.kill()
				kills++
				wait = time.Second
			}
		}
		<-done
		require.NoError(t, errors.Join(errs...))
		require.Positive(t, kills)
		t.Logf("round %d: killed %d times", round, kills)
		require.NoError(t, testenv.DropCaches())
		require.NoError(t, r.img.Compare(at))
		r.served()
		r.end(at)
	}
}

// end unmounts and waits until the daemon is gone.
func (r *rig) end(at string) {
	r.lazyerofs("umount", at)
	require.Eventually(r, func() bool {
		pids, err := testenv.Processes(r.state)
		return err == nil && len(pids) == 0
	}, patience, 50*time.Millisecond)
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(r.dir))
	require.NoError(r, err)
	require.Empty(r, infos)
}
