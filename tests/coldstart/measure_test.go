package coldstart

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, testenv.IgnoreRegistry()) }

func bed(t *testing.T) *Bed {
	t.Helper()
	testenv.RequireRoot(t)
	dir := t.TempDir()
	testenv.VerifyNoLeaks(t, dir)
	b, err := NewBed(dir, testenv.Profile{RTT: 2 * time.Millisecond, BytesPerSecond: 100_000_000})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return b
}

func push(t *testing.T, b *Bed) *testenv.Image {
	t.Helper()
	recipe, err := testenv.Tiny()
	require.NoError(t, err)
	image, err := recipe.Build(t.Context(), func(string) {})
	require.NoError(t, err)
	require.NoError(t, image.Push(t.Context(), b.Registry.Addr()+"/"+image.Name+":"+TagTar))
	return image
}

func TestMeasureOverlayfs(t *testing.T) {
	b := bed(t)
	image := push(t, b)
	for range 2 { // a second cold start fetches everything again
		r, err := b.Measure(t.Context(), Overlayfs(), image.Name, image.Ready)
		require.NoError(t, err)
		require.Equal(t, testenv.TinyOutput, r.Output)
		require.Greater(t, r.Received, image.Size())
		require.Less(t, r.Received, image.Size()+16<<10)
		require.Equal(t, r.Requests, len(r.Log))
		require.Positive(t, r.Pull)
		require.Positive(t, r.Run)
		require.Positive(t, r.CPU)
		require.Greater(t, r.Disk, image.Size())
	}
	left, err := os.ReadDir(b.Dir)
	require.NoError(t, err)
	require.Len(t, left, 1, "only the registry stays")
}

// TestMeasureErofs: containerd's own EROFS runs the same image, with mkfs.erofs.
func TestMeasureErofs(t *testing.T) {
	b := bed(t)
	image := push(t, b)
	mkfs, err := testenv.Tool("mkfs.erofs")
	require.NoError(t, err)
	t.Setenv("PATH", filepath.Dir(mkfs)+":"+os.Getenv("PATH"))
	r, err := b.Measure(t.Context(), Erofs("-T0", "--mkfs-time", "--sort=none"), image.Name, image.Ready)
	require.NoError(t, err)
	require.Equal(t, testenv.TinyOutput, r.Output)
	require.Greater(t, r.Received, image.Size())
	require.Positive(t, r.CPU)
}

// TestMeasureObserved: with metrics at a socket, which goes with the daemon.
func TestMeasureObserved(t *testing.T) {
	b := bed(t)
	image := push(t, b)
	socket := filepath.Join(b.Dir, "m.sock")
	r, err := b.Measure(t.Context(), LazyerofsTarObserved(socket), image.Name, image.Ready)
	require.NoError(t, err)
	require.Equal(t, testenv.TinyOutput, r.Output)
	_, err = os.Stat(socket)
	require.ErrorIs(t, err, os.ErrNotExist, "the daemon removes it when it ends")
}

// failing is a system that cannot pull.
type failing struct{ stopped int }

func (*failing) Name() string { return "failing" }
func (*failing) Tag() string  { return TagTar }
func (f *failing) Start(_ context.Context, dir string) (Node, error) {
	return f, os.WriteFile(filepath.Join(dir, "state"), nil, 0o600)
}
func (*failing) Pull(context.Context, string) error                    { return errors.New("no route") }
func (*failing) Run(context.Context, string, []string) (string, error) { return "", nil }
func (*failing) CPU() (time.Duration, error)                           { return 0, nil }
func (f *failing) Stop() error                                         { f.stopped++; return nil }

func TestMeasureStopsWhatFailed(t *testing.T) {
	b := bed(t)
	push(t, b)
	f := &failing{}
	_, err := b.Measure(t.Context(), f, "image", nil)
	require.ErrorContains(t, err, "no route")
	require.Equal(t, 1, f.stopped)
	left, err := filepath.Glob(filepath.Join(b.Dir, "failing-*"))
	require.NoError(t, err)
	require.Empty(t, left)
}
