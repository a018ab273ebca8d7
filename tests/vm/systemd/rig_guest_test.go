//go:build guest

package systemd

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/tests/testenv"
	"github.com/lazyerofs/lazyerofs/tests/vm/image"
)

const (
	// patience bounds waits for what must happen; a guest is slow.
	patience = 4 * time.Minute

	service    = "lazyerofsd.service"
	socket     = "lazyerofsd.socket"
	supervised = "lazyerofsd-supervised.service"
	store      = "lazyerofsd-store.target"

	// guarded is the least that is stored while a layer is incomplete: its writer, the
	// group and the journal.
	guarded = 3
)

// line makes the image take half a minute, in which units are killed.
var line = testenv.Profile{RTT: 10 * time.Millisecond, BytesPerSecond: 400_000}

// run runs a command to its end.
func run(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	return string(out), err
}

func systemctl(t *testing.T, args ...string) {
	t.Helper()
	out, err := run(t, "systemctl", args...)
	require.NoError(t, err, "systemctl %s: %s", strings.Join(args, " "), out)
}

func show(t *testing.T, unit string) status {
	t.Helper()
	out, err := run(t, "systemctl", "show", "-p", statusProperties, unit)
	require.NoError(t, err, "%s", out)
	s, err := parseStatus(out)
	require.NoError(t, err)
	return s
}

// until waits for what must come true.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	late := time.NewTimer(patience)
	defer late.Stop()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for !holds() {
		select {
		case <-late.C:
			require.FailNow(t, "waited in vain for "+what)
		case <-again.C:
		}
	}
}

// await waits until the service of unit is ready with another main process than
// old, and returns its status.
func await(t *testing.T, unit string, old int) (s status) {
	t.Helper()
	until(t, unit+" to run", func() bool {
		s = show(t, unit)
		return s.running() && s.MainPID != old
	})
	return s
}

// rig is an image behind a slow line, and a directory to mount it at.
type rig struct {
	*testing.T
	img     *image.Image
	ref, at string
}

// newRig makes one that no other test has the layers of.
func newRig(t *testing.T, seed byte) *rig {
	img, err := image.New(seed)
	require.NoError(t, err)
	dir := t.TempDir()
	reg, err := img.Serve(t.Context(), dir)
	if reg != nil {
		t.Cleanup(func() { require.NoError(t, reg.Close()) })
	}
	require.NoError(t, err)
	shaper, err := testenv.StartShaper(reg.Addr(), line)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, shaper.Close()) })
	r := &rig{T: t, img: img, ref: shaper.Addr() + "/img:lazy", at: filepath.Join(dir, "mnt")}
	require.NoError(t, os.Mkdir(r.at, 0o755))
	t.Cleanup(func() {
		if t.Failed() {
			out, err := run(t, "journalctl", "--no-pager", "-o", "short-monotonic", "-n", "300", "-u", "lazyerofsd*", "-u", "containerd*", "-u", "init.scope")
			t.Log(out, err)
		}
	})
	return r
}

// lazyerofs runs the command against the system's daemon.
func (r *rig) lazyerofs(verb string, args ...string) {
	r.Helper()
	args = append([]string{verb, "--root", "/var/lib/lazyerofs", "--address", "/run/lazyerofs/lazyerofs.sock"}, args...)
	out, err := run(r.T, testenv.MustTool(r, "lazyerofs"), args...)
	require.NoError(r, err, "%s", out)
}

func (r *rig) mount() { r.Helper(); r.lazyerofs("mount", r.ref, r.at) }

// umount unmounts and waits until the store of unit holds no more than left.
func (r *rig) umount(unit string, left int) {
	r.Helper()
	r.lazyerofs("umount", r.at)
	until(r.T, "an empty store", func() bool { return show(r.T, unit).Stored == left })
}

// readers are three that compare the whole image.
type readers struct {
	done chan struct{}
	err  error
}

func (r *rig) read() *readers {
	rs := &readers{done: make(chan struct{})}
	var group sync.WaitGroup
	errs := make([]error, 3)
	for i := range errs {
		group.Go(func() { errs[i] = r.img.Compare(r.at) })
	}
	go func() {
		group.Wait()
		rs.err = errors.Join(errs...)
		close(rs.done)
	}()
	return rs
}

// wait returns once a reader waits for the answer to an event. That all of them
// have read means that nothing guarded the layers.
func (rs *readers) wait(t *testing.T) {
	t.Helper()
	until(t, "a reader that waits", func() bool {
		select {
		case <-rs.done:
			require.FailNow(t, "read without a daemon", "%v", rs.err)
		default:
		}
		return waits(t)
	})
}

// disturb does something at random moments as long as there are readers, at most
// most times and at least least, and returns when all of them have read what is
// true.
func (r *rig) disturb(least, most int, something func(n int)) {
	r.Helper()
	rs := r.read()
	n := 0
	for reading := true; reading && n < most; {
		select {
		case <-rs.done:
			reading = false
		case <-time.After(time.Duration(rand.Int64N(int64(time.Second)))):
			something(n)
			n++
		}
	}
	<-rs.done
	require.NoError(r, rs.err)
	r.Logf("disturbed %d times", n)
	require.GreaterOrEqual(r, n, least)
	require.NoError(r, testenv.DropCaches())
	require.NoError(r, r.img.Compare(r.at))
}

// waits says whether a thread of this process waits for the answer to an event.
func waits(t *testing.T) bool {
	t.Helper()
	list, err := filepath.Glob("/proc/self/task/*/wchan")
	require.NoError(t, err)
	for _, f := range list {
		at, err := os.ReadFile(f)
		if err == nil && strings.Contains(string(at), "fanotify") {
			return true
		}
	}
	return false
}

// child is the process that the supervisor runs, 0 when there is none.
func child(t *testing.T, pid int) int {
	t.Helper()
	list, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/children")
	require.NoError(t, err)
	for _, f := range list {
		b, err := os.ReadFile(f)
		require.NoError(t, err)
		if words := strings.Fields(string(b)); len(words) > 0 {
			n, err := strconv.Atoi(words[0])
			require.NoError(t, err)
			return n
		}
	}
	return 0
}
