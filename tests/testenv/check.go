package testenv

import (
	"maps"
	"os"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// IgnoreRegistry makes goleak overlook the one goroutine that the distribution
// project's registry starts and has no way to stop.
func IgnoreRegistry() goleak.Option {
	return goleak.IgnoreAnyFunction("github.com/docker/go-events.(*Broadcaster).run")
}

// RequireRoot fails the test unless it runs as root: it needs real mounts, and
// a test that is skipped proves nothing.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test mounts file systems and must run as root")
	}
}

// MustTool is Tool for tests.
func MustTool(t testing.TB, name string) string {
	t.Helper()
	path, err := Tool(name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// VerifyNoLeaks fails the test at its end when mounts below dir, processes that
// name dir, or descriptors that were not open now are left. Call it before the
// clean-ups that it is to judge are registered.
func VerifyNoLeaks(t testing.TB, dir string) {
	t.Helper()
	before, err := Descriptors()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if mounts, err := Mounts(dir); err != nil || len(mounts) > 0 {
			t.Errorf("still mounted: %q (%v)", mounts, err)
		}
		if pids, err := Processes(dir); err != nil || len(pids) > 0 {
			t.Errorf("still running: %d (%v)", pids, err)
		}
		left, err := newDescriptors(before)
		if err != nil {
			t.Error(err)
		}
		for _, fd := range slices.Sorted(maps.Keys(left)) {
			t.Errorf("descriptor %d still open: %s", fd, left[fd])
		}
	})
}

// newDescriptors returns the descriptors that are open now and were not before. A
// connection that the other end has closed is closed here a moment later, by a
// goroutine of net/http: it gets that moment.
func newDescriptors(before map[int]string) (map[int]string, error) {
	deadline := time.After(5 * time.Second)
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		after, err := Descriptors()
		if err != nil {
			return nil, err
		}
		maps.DeleteFunc(after, func(fd int, _ string) bool { return before[fd] != "" })
		if len(after) == 0 {
			return after, nil
		}
		select {
		case <-deadline:
			return after, nil
		case <-again.C:
		}
	}
}
