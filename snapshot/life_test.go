package snapshot

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
)

func TestRestart(t *testing.T) {
	ctx := t.Context()
	files := newFakeFS(t)
	files.layer(t, "d1", "one", "1")
	files.layer(t, "d2", "two", "2")
	root := t.TempDir()
	s, err := New(root, files, Config{})
	require.NoError(t, err)
	_, err = s.Prepare(ctx, extractKey(1, "c1"), "", ask("c1", "", "d1", "m"))
	require.True(t, errdefs.IsAlreadyExists(err))
	_, err = s.Prepare(ctx, extractKey(2, "c2"), "c1", ask("c2", "c1", "d2", "m"))
	require.True(t, errdefs.IsAlreadyExists(err))
	ms, err := s.Prepare(ctx, "box", "c2")
	require.NoError(t, err)
	require.NoError(t, s.Close())
	require.Equal(t, 2, mountsUnder(t, root), "stopping took mounts away")

	// Another process: it adopts what is mounted and mounts nothing twice.
	next := files.restarted()
	s, err = New(root, next, Config{})
	require.NoError(t, err)
	require.Equal(t, 2, mountsUnder(t, root), "starting changed mounts")
	require.NoError(t, s.Restore(ctx))
	calls, _ := next.count()
	require.Equal(t, 2, calls)
	got, err := s.Mounts(ctx, "box")
	require.NoError(t, err)
	require.Equal(t, ms, got)
	require.Equal(t, 2, mountsUnder(t, root))
	calls, _ = next.count()
	require.Equal(t, 2, calls, "an adopted layer was mounted again")
	require.NoError(t, s.Close())

	// Another boot: nothing is mounted, everything comes back on first use.
	unmountAll(t, root)
	next = files.restarted()
	s = open(t, root, next, Config{})
	require.NoError(t, s.Restore(ctx))
	require.Zero(t, mountsUnder(t, root))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			got, err := s.Mounts(ctx, "box")
			require.NoError(t, err)
			require.Equal(t, ms, got)
		})
	}
	wg.Wait()
	calls, _ = next.count()
	require.Equal(t, 2, calls)
	require.Equal(t, "2", read(t, ms, "two"))
}

func TestBrokenLayerStopsOnlyItsContainers(t *testing.T) {
	ctx := t.Context()
	files := newFakeFS(t)
	files.layer(t, "d1", "one", "1")
	files.layer(t, "e1", "other", "o")
	root := t.TempDir()
	s := open(t, root, files, Config{})
	_, err := s.Prepare(ctx, extractKey(1, "c1"), "", ask("c1", "", "d1", "m"))
	require.True(t, errdefs.IsAlreadyExists(err))
	_, err = s.Prepare(ctx, extractKey(2, "f1"), "", ask("f1", "", "e1", "n"))
	require.True(t, errdefs.IsAlreadyExists(err))
	unmountAll(t, root)
	require.NoError(t, os.RemoveAll(filepath.Join(files.layers, "d1")))

	require.NoError(t, s.Restore(ctx))
	_, err = s.Prepare(ctx, "box", "c1")
	require.ErrorContains(t, err, "layer c1 cannot be mounted again")
	_, err = s.Stat(ctx, "box")
	require.True(t, errdefs.IsNotFound(err))
	ms, err := s.View(ctx, "view", "f1")
	require.NoError(t, err)
	require.Equal(t, "o", read(t, ms, "other"))

	// A pull from another namespace gets an ordinary unpack instead.
	ms, err = s.Prepare(ctx, "other/1/extract-9 c1", "", ask("c1", "", "d1", "m"))
	require.NoError(t, err)
	require.False(t, ms[0].ReadOnly())
	require.True(t, strings.HasPrefix(lookup(t, s, "other/1/extract-9 c1").Labels[LabelMiss], "restore: "))
}

func TestCleanup(t *testing.T) {
	ctx := t.Context()
	files := newFakeFS(t)
	files.layer(t, "d1", "one", "1")
	root := t.TempDir()
	s := open(t, root, files, Config{})
	require.NoError(t, s.Cleanup(ctx), "an empty store")
	_, err := s.Prepare(ctx, extractKey(1, "c1"), "", ask("c1", "", "d1", "m"))
	require.True(t, errdefs.IsAlreadyExists(err))
	_, err = s.Prepare(ctx, "box", "c1")
	require.NoError(t, err)
	require.True(t, errdefs.IsFailedPrecondition(s.Remove(ctx, "c1")), "a layer in use")

	require.NoError(t, s.Remove(ctx, "box"))
	require.NoError(t, s.Remove(ctx, "c1"))
	require.Equal(t, 1, mountsUnder(t, root), "Remove unmounted: it may not wait for the kernel")
	require.NoError(t, s.Cleanup(ctx))
	require.Zero(t, mountsUnder(t, root))
	for _, d := range []string{"l", "snapshots"} {
		left, err := os.ReadDir(filepath.Join(root, d))
		require.NoError(t, err)
		require.Empty(t, left)
	}
	_, err = s.Prepare(ctx, extractKey(2, "c1"), "", ask("c1", "", "d1", "m"))
	require.True(t, errdefs.IsAlreadyExists(err))
	mounted, err := mountinfo.Mounted(s.target("3"))
	require.NoError(t, err)
	require.True(t, mounted, "identifiers are never used twice")
}
