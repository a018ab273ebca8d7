package snapshot

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeFS is a Filesystem whose layers are directories on this machine: a layer
// is named by the diff-id label and mounted as a read-only bind. It is a fake only in where the
// content comes from; the mounts are real.
type fakeFS struct {
	layers string // directory of layers by name

	mu    sync.Mutex
	known map[string]bool // targets that this "process" serves
	// faults
	mount func(ctx context.Context, target string) error
	check error
	calls int // of Mount
	files int // of MountFile
}

func newFakeFS(t *testing.T) *fakeFS {
	return &fakeFS{layers: t.TempDir(), known: make(map[string]bool)}
}

// restarted is the same node with a new process.
func (f *fakeFS) restarted() *fakeFS { return &fakeFS{layers: f.layers, known: make(map[string]bool)} }

// layer makes a layer that holds one file.
func (f *fakeFS) layer(t *testing.T, name, file, content string) string {
	dir := filepath.Join(f.layers, name)
	require.NoError(t, os.MkdirAll(dir, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, file), []byte(content), 0o644))
	return dir
}

func (f *fakeFS) Mount(ctx context.Context, target string, labels map[string]string) error {
	f.mu.Lock()
	f.calls++
	fault := f.mount
	f.mu.Unlock()
	if fault != nil {
		if err := fault(ctx, target); err != nil {
			return err
		}
	}
	dir := filepath.Join(f.layers, filepath.Base(labels["containerd.io/snapshot/diff-id"]))
	if _, err := os.Stat(dir); err != nil {
		return &MissError{Reason: "format", Err: errors.New("the layer has no chunk index")}
	}
	return f.bind(dir, target)
}

func (f *fakeFS) MountFile(_ context.Context, target, file string) error {
	f.mu.Lock()
	f.files++
	f.mu.Unlock()
	// The "image" names the directory that it holds.
	dir, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return f.bind(string(dir), target)
}

func (f *fakeFS) bind(dir, target string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	mounted, err := mountinfo.Mounted(target)
	if err != nil {
		return err
	}
	if !mounted {
		if err := unix.Mount(dir, target, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		if err := unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return err
		}
	}
	f.known[target] = true
	return nil
}

func (f *fakeFS) Check(_ context.Context, target string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.known[target] {
		return errors.New("not served here")
	}
	return f.check
}

func (f *fakeFS) Unmount(_ context.Context, target string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.known, target)
	err := unix.Unmount(target, unix.MNT_DETACH)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func (f *fakeFS) count() (mounts, files int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls, f.files
}

// open starts a snapshotter whose mounts go away with the test.
func open(t *testing.T, root string, files Filesystem, config Config) *Snapshotter {
	t.Helper()
	s, err := New(root, files, config)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, s.Close())
		unmountAll(t, root)
	})
	return s
}

func unmountAll(t *testing.T, root string) {
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(root))
	require.NoError(t, err)
	for _, m := range infos {
		require.NoError(t, unix.Unmount(m.Mountpoint, unix.MNT_DETACH))
	}
}

func mountsUnder(t *testing.T, root string) int {
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(root))
	require.NoError(t, err)
	return len(infos)
}
