package snapshot

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
)

// ask builds what containerd's unpacker sends for a layer.
func ask(chain, parentChain, diffID, manifest string) snapshots.Opt {
	labels := map[string]string{
		labelTarget:                        chain,
		"containerd.io/snapshot/diff-id":   diffID,
		labelManifest:                      manifest,
		"containerd.io/snapshot/erofs.pin": "1:2",
	}
	if parentChain != "" {
		labels[labelParentChain] = parentChain
	}
	return snapshots.WithLabels(labels)
}

func extractKey(n int, chain string) string {
	return fmt.Sprintf("default/%d/extract-%d-x %s", n, n, chain)
}

// read mounts ms and reads one file.
func read(t *testing.T, ms []mount.Mount, name string) string {
	t.Helper()
	at := t.TempDir()
	require.NoError(t, mount.All(ms, at))
	defer func() { require.NoError(t, mount.UnmountAll(at, 0)) }()
	b, err := os.ReadFile(filepath.Join(at, name))
	require.NoError(t, err)
	return string(b)
}

func lookup(t *testing.T, s *Snapshotter, name string) snapshots.Info {
	t.Helper()
	info, err := s.Stat(context.Background(), name)
	require.NoError(t, err)
	return info
}

func TestHitCommitsUnderTheChainID(t *testing.T) {
	ctx := t.Context()
	files := newFakeFS(t)
	files.layer(t, "d1", "one", "1")
	files.layer(t, "d2", "two", "2")
	reg := prometheus.NewRegistry()
	s := open(t, t.TempDir(), files, Config{Metrics: reg})

	_, err := s.Prepare(ctx, extractKey(1, "c1"), "", ask("c1", "", "d1", "m"))
	require.True(t, errdefs.IsAlreadyExists(err), "%v", err)
	_, err = s.Prepare(ctx, extractKey(2, "c2"), "c1", ask("c2", "c1", "d2", "m"))
	require.True(t, errdefs.IsAlreadyExists(err), "%v", err)

	// What containerd's metadata store looks for next.
	var found []string
	require.NoError(t, s.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		found = append(found, i.Name)
		return nil
	}, `labels."containerd.io/snapshot.ref"==c2,parent=="c1"`))
	require.Equal(t, []string{"c2"}, found)
	require.Equal(t, LayerLazy, lookup(t, s, "c2").Labels[LabelLayer])
	_, err = s.Stat(ctx, extractKey(2, "c2"))
	require.True(t, errdefs.IsNotFound(err), "the extraction snapshot is left over")

	ms, err := s.Prepare(ctx, "default/3/box", "c2")
	require.NoError(t, err)
	require.Equal(t, "1", read(t, ms, "one"))
	require.Equal(t, "2", read(t, ms, "two"))
	again, err := s.Mounts(ctx, "default/3/box")
	require.NoError(t, err)
	require.Equal(t, ms, again)

	u, err := s.Usage(ctx, "c2")
	require.NoError(t, err)
	require.Zero(t, u.Size)
	require.Equal(t, 2.0, testutil.ToFloat64(s.metrics.hits))
	n, err := testutil.GatherAndCount(reg, "lazyerofs_snapshot_prepare_seconds")
	require.NoError(t, err)
	require.Equal(t, 2, n, "outcomes hit and active")
}

func TestSecondNamespaceSharesTheLayer(t *testing.T) {
	ctx := t.Context()
	files := newFakeFS(t)
	files.layer(t, "d1", "one", "1")
	s := open(t, t.TempDir(), files, Config{})
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		wg.Go(func() {
			_, errs[i] = s.Prepare(ctx, fmt.Sprintf("ns%d/1/extract-%d c1", i, i), "", ask("c1", "", "d1", "m"))
		})
	}
	wg.Wait()
	for _, err := range errs {
		require.True(t, errdefs.IsAlreadyExists(err), "%v", err)
	}
	calls, _ := files.count()
	require.Equal(t, 1, calls, "the layer was mounted more than once")
	n := 0
	require.NoError(t, s.Walk(ctx, func(context.Context, snapshots.Info) error { n++; return nil }))
	require.Equal(t, 1, n, "orphan snapshots are left")
}

func TestMissIsAnOrdinarySnapshot(t *testing.T) {
	ctx := t.Context()
	files := newFakeFS(t)
	root := t.TempDir()
	s := open(t, root, files, Config{})
	key := extractKey(1, "c1")
	ms, err := s.Prepare(ctx, key, "", ask("c1", "", "d1", "m"))
	require.NoError(t, err)
	require.Len(t, ms, 1)
	require.Equal(t, "bind", ms[0].Type)
	require.False(t, ms[0].ReadOnly(), "containerd would take the layer for staged")
	require.FileExists(t, filepath.Join(filepath.Dir(ms[0].Source), MarkerFile))
	require.Contains(t, lookup(t, s, key).Labels[LabelMiss], "format: the layer has no chunk index")
	require.Equal(t, 1.0, testutil.ToFloat64(s.metrics.misses.WithLabelValues("format")))
	require.Zero(t, mountsUnder(t, root))

	// What the differ does.
	dir := files.layer(t, "unpacked", "one", "1")
	require.NoError(t, os.WriteFile(filepath.Join(filepath.Dir(ms[0].Source), LayerFileName), []byte(dir), 0o600))
	require.NoError(t, s.Commit(ctx, "default/2/c1", key, ask("c1", "", "d1", "m")))
	info := lookup(t, s, "default/2/c1")
	require.Equal(t, LayerFile, info.Labels[LabelLayer])
	require.NotEmpty(t, info.Labels[LabelMiss], "the reason is lost at commit")

	view, err := s.View(ctx, "default/3/view", "default/2/c1")
	require.NoError(t, err)
	require.True(t, view[0].ReadOnly())
	require.Equal(t, "1", read(t, view, "one"))
	u, err := s.Usage(ctx, "default/2/c1")
	require.NoError(t, err)
	require.Positive(t, u.Size)
}

func TestMissReachesUpwards(t *testing.T) {
	ctx := t.Context()
	files := newFakeFS(t)
	files.layer(t, "d2", "two", "2")
	s := open(t, t.TempDir(), files, Config{})
	key := extractKey(1, "c1")
	_, err := s.Prepare(ctx, key, "", ask("c1", "", "d1", "m"))
	require.NoError(t, err)
	require.NoError(t, s.Commit(ctx, "default/2/c1", key, ask("c1", "", "d1", "m")))

	up := extractKey(3, "c2")
	ms, err := s.Prepare(ctx, up, "default/2/c1", ask("c2", "c1", "d2", "m"))
	require.NoError(t, err)
	require.False(t, ms[0].ReadOnly())
	require.Equal(t, "overlay", ms[0].Type, "a bind would lose whiteouts in a differ that does not know us")
	require.True(t, strings.HasPrefix(lookup(t, s, up).Labels[LabelMiss], "parent: "))
	calls, _ := files.count()
	require.Equal(t, 1, calls, "the Filesystem was asked for a layer that may not be a hit")

	// The same parent under another manifest was here before that pull.
	_, err = s.Prepare(ctx, extractKey(4, "c2"), "default/2/c1", ask("c2", "c1", "d2", "other"))
	require.True(t, errdefs.IsAlreadyExists(err), "%v", err)
}

func TestRebaseIsNeverAHit(t *testing.T) {
	ctx := t.Context()
	files := newFakeFS(t)
	files.layer(t, "d1", "one", "1")
	files.layer(t, "d2", "two", "2")
	s := open(t, t.TempDir(), files, Config{})
	_, err := s.Prepare(ctx, extractKey(1, "c1"), "", ask("c1", "", "d1", "m"))
	require.True(t, errdefs.IsAlreadyExists(err), "the bottom layer has no parent to lose: %v", err)
	key := extractKey(2, "c2")
	ms, err := s.Prepare(ctx, key, "", ask("c2", "c1", "d2", "m"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(ms[0].Source, "two"), []byte("2"), 0o600))
	require.True(t, strings.HasPrefix(lookup(t, s, key).Labels[LabelMiss], "rebase: "))
	require.NoError(t, s.Commit(ctx, "default/3/c2", key, snapshots.WithParent("c1")))
	ms, err = s.View(ctx, "v", "default/3/c2")
	require.NoError(t, err)
	require.Equal(t, "1", read(t, ms, "one"))
	require.Equal(t, "2", read(t, ms, "two"))
}

func TestStrictFailsThePull(t *testing.T) {
	ctx := t.Context()
	s := open(t, t.TempDir(), newFakeFS(t), Config{Strict: true})
	_, err := s.Prepare(ctx, extractKey(1, "c1"), "", ask("c1", "", "d1", "m"))
	require.ErrorContains(t, err, "strict is set")
	require.True(t, errdefs.IsFailedPrecondition(err))
	_, err = s.Prepare(ctx, "box", "")
	require.NoError(t, err, "strict is about layers that are asked for by name")
}

func TestSlowMountIsAMiss(t *testing.T) {
	ctx := t.Context()
	files := newFakeFS(t)
	files.layer(t, "d1", "one", "1")
	release := make(chan struct{})
	entered := make(chan struct{}, 1)
	files.mount = func(context.Context, string) error { // deaf to its context
		entered <- struct{}{}
		<-release
		return nil
	}
	root := t.TempDir()
	s, err := New(root, files, Config{PrepareTimeout: time.Second}) // it is entered before
	require.NoError(t, err)
	ms, err := s.Prepare(ctx, extractKey(1, "c1"), "", ask("c1", "", "d1", "m"))
	require.NoError(t, err)
	require.Len(t, ms, 1)
	<-entered
	require.Equal(t, 1.0, testutil.ToFloat64(s.metrics.misses.WithLabelValues("timeout")))
	close(release)
	require.NoError(t, s.Close()) // waits for the late mount, which is undone
	require.Zero(t, mountsUnder(t, root))
	_, err = s.Prepare(ctx, extractKey(2, "c1"), "", ask("c1", "", "d1", "m"))
	require.Error(t, err, "closed")
}

func TestPrivateLabels(t *testing.T) {
	ctx := t.Context()
	files := newFakeFS(t)
	files.layer(t, "d1", "one", "1")
	s := open(t, t.TempDir(), files, Config{})
	forged := snapshots.WithLabels(map[string]string{LabelLayer: LayerFile, LabelMiss: "x"})
	_, err := s.Prepare(ctx, "a", "", forged)
	require.NoError(t, err)
	require.NoError(t, s.Commit(ctx, "forged", "a", forged))
	require.Empty(t, lookup(t, s, "forged").Labels)

	_, err = s.Prepare(ctx, extractKey(1, "c1"), "", ask("c1", "", "d1", "m"))
	require.True(t, errdefs.IsAlreadyExists(err))
	before := lookup(t, s, "c1").Labels
	info := snapshots.Info{Name: "c1", Labels: map[string]string{
		"mine": "1", "containerd.io/snapshot/diff-id": "evil", LabelLayer: LayerFile,
	}}
	got, err := s.Update(ctx, info, "labels")
	require.NoError(t, err)
	want := maps.Clone(before)
	want["mine"] = "1"
	require.Equal(t, want, got.Labels)
	got, err = s.Update(ctx, info, "labels.containerd.io/snapshot/diff-id")
	require.NoError(t, err)
	require.Equal(t, want, got.Labels)
	require.Equal(t, want, lookup(t, s, "c1").Labels)
}

func TestUpperDirectoryShowsTheLayersRoot(t *testing.T) {
	ctx := t.Context()
	files := newFakeFS(t)
	dir := files.layer(t, "d1", "one", "1")
	require.NoError(t, os.Chown(dir, 7, 8))
	require.NoError(t, os.Chmod(dir, 0o701|os.ModeSticky))
	s := open(t, t.TempDir(), files, Config{})
	_, err := s.Prepare(ctx, extractKey(1, "c1"), "", ask("c1", "", "d1", "m"))
	require.True(t, errdefs.IsAlreadyExists(err))
	ms, err := s.Prepare(ctx, "box", "c1")
	require.NoError(t, err)
	at := t.TempDir()
	require.NoError(t, mount.All(ms, at))
	defer func() { require.NoError(t, mount.UnmountAll(at, 0)) }()
	st, err := os.Stat(at)
	require.NoError(t, err)
	require.Equal(t, 0o701|os.ModeSticky|os.ModeDir, st.Mode())
}

func TestCancelledCallerIsNotAMiss(t *testing.T) {
	files := newFakeFS(t)
	ctx, cancel := context.WithCancel(t.Context())
	files.mount = func(context.Context, string) error {
		cancel()
		return errors.New("gave up")
	}
	s := open(t, t.TempDir(), files, Config{})
	_, err := s.Prepare(ctx, extractKey(1, "c1"), "", ask("c1", "", "d1", "m"))
	require.ErrorIs(t, err, context.Canceled)
	n := 0
	require.NoError(t, s.Walk(t.Context(), func(context.Context, snapshots.Info) error { n++; return nil }))
	require.Zero(t, n)
}
