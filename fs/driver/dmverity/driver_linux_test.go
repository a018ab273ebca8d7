package dmverity

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
	"github.com/lazyerofs/lazyerofs/fs/format/formattest"
	"github.com/lazyerofs/lazyerofs/fs/kernel"
)

func TestMain(m *testing.M) { drivertest.Main(m) }

const patience = 20 * time.Second

// treed is a layer that ends in a hash tree.
type treed struct {
	*drivertest.Layer
	v *chunk.Verity
}

// Verity implements driver.Treed.
func (l *treed) Verity() *chunk.Verity { return l.v }

type rig struct {
	*testing.T
	d      *Driver
	img    *drivertest.Image
	image  int // bytes of it
	layer  *treed
	target string
	works  bool // here
}

func newRig(t *testing.T) *rig {
	dir := t.TempDir()
	r := &rig{T: t, d: New(256), img: drivertest.NewImage(t, 1, false), target: filepath.Join(dir, "m")}
	require.NoError(t, os.Mkdir(r.target, 0o755))
	err := r.d.Probe(dir)
	if r.works = err == nil; err != nil {
		require.ErrorIs(t, err, kernel.ErrNotSupported)
	}
	r.image = len(r.img.Data)
	data, v, err := formattest.WithTree(r.img.Data)
	require.NoError(t, err)
	r.img.Data = data
	r.layer = &treed{drivertest.NewLayer(t, dir, "layer", r.img), &v}
	t.Cleanup(func() {
		_ = unix.Unmount(r.target, unix.MNT_DETACH)
		_ = r.d.Shutdown(context.Background())
		_ = r.layer.Close()
	})
	return r
}

func (r *rig) fill() {
	require.NoError(r, r.layer.Ensure(r.Context(), 0, int64(len(r.img.Data))))
	require.True(r, r.d.For(r.layer))
}

// source is what is mounted at the target, "" for nothing.
func (r *rig) source() string {
	infos, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(r.target))
	require.NoError(r, err)
	if len(infos) == 0 {
		return ""
	}
	return infos[0].Source
}

func (r *rig) devices() int {
	n := 0
	names, err := filepath.Glob("/sys/block/dm-*/dm/name")
	require.NoError(r, err)
	for _, name := range names {
		if b, err := os.ReadFile(name); err == nil && strings.HasPrefix(string(b), "lazyerofs-") {
			n++
		}
	}
	return n
}

func (r *rig) compare() {
	r.Helper()
	for name, want := range r.img.Files {
		got, err := os.ReadFile(filepath.Join(r.target, name))
		require.NoError(r, err, name)
		require.True(r, bytes.Equal(want, got), name)
	}
}

func TestOnlyForCompleteLayersWithATree(t *testing.T) {
	r := newRig(t)
	require.False(t, r.d.For(r.layer))
	_, err := r.d.Mount(t.Context(), r.target, r.layer)
	require.ErrorIs(t, err, ErrNotForIt)
	r.fill()
	require.False(t, r.d.For(r.layer.Layer), "a layer without a tree")
	require.False(t, r.d.For(&treed{r.layer.Layer, nil}))
	require.Empty(t, r.source())
	require.Nil(t, driver.Verity(r.layer.Layer))
	require.EqualValues(t, len(r.img.Data), driver.ImageSize(r.layer.Layer, int64(len(r.img.Data))))
	require.EqualValues(t, r.image, driver.ImageSize(r.layer, int64(len(r.img.Data))))
}

// TestMount is the whole life of a mount where there is dm-verity. Elsewhere it is
// refused, and nothing is left of the attempt.
func TestMount(t *testing.T) {
	r := newRig(t)
	r.fill()
	m, err := r.d.Mount(t.Context(), r.target, r.layer)
	if !r.works {
		require.ErrorIs(t, err, kernel.ErrNotSupported)
		require.Empty(t, r.source())
		require.Zero(t, r.devices())
		return
	}
	require.NoError(t, err)
	require.Equal(t, r.target, m.Target())
	require.True(t, strings.HasPrefix(r.source(), "/dev/dm-"), r.source())
	require.Equal(t, 1, r.devices())
	r.compare()

	// A successor takes it over by looking.
	require.NoError(t, m.Release())
	require.NoError(t, r.d.Shutdown(t.Context()))
	require.ErrorIs(t, r.d.Shutdown(t.Context()), ErrShutdown)
	require.ErrorIs(t, m.Close(t.Context()), ErrShutdown)
	r.d = New(0)
	m, err = r.d.Adopt(t.Context(), r.target, r.layer)
	require.NoError(t, err)
	r.compare()

	open, err := os.Open(filepath.Join(r.target, "dir0/file9"))
	require.NoError(t, err)
	require.NoError(t, m.Close(t.Context()))
	require.Empty(t, r.source())
	select {
	case <-m.Done():
		t.Fatal("a file of it is open")
	default:
	}
	require.NoError(t, open.Close())
	select {
	case <-m.Done():
	case <-time.After(patience):
		t.Fatal("nobody holds it any more")
	}
	require.NoError(t, m.Close(t.Context()), "twice")
	require.Eventually(t, func() bool { return r.devices() == 0 }, patience, 5*time.Millisecond)
}

// TestWrongBytes: a block that changed on disk is an error and never other bytes; so
// is an image that does not have the root.
func TestWrongBytes(t *testing.T) {
	r := newRig(t)
	r.fill()
	other := *r.layer.v
	other.Root = digest.FromString("other")
	_, err := r.d.Mount(t.Context(), r.target, &treed{r.layer.Layer, &other})
	require.Error(t, err)
	require.Empty(t, r.source())
	if !r.works {
		require.ErrorIs(t, err, kernel.ErrNotSupported)
		return
	}
	want := r.img.Files["dir0/file9"]
	at := bytes.Index(r.img.Data, want[len(want)-4096:])
	require.Positive(t, at)
	_, err = r.layer.Data().WriteAt([]byte("changed"), int64(at))
	require.NoError(t, err)
	m, err := r.d.Mount(t.Context(), r.target, r.layer)
	require.NoError(t, err)
	_, err = os.ReadFile(filepath.Join(r.target, "dir0/file9"))
	require.ErrorIs(t, err, unix.EIO)
	got, err := os.ReadFile(filepath.Join(r.target, "dir0/file6"))
	require.NoError(t, err)
	require.True(t, bytes.Equal(r.img.Files["dir0/file6"], got))
	require.NoError(t, m.Close(t.Context()))
	require.Eventually(t, func() bool { return r.devices() == 0 }, patience, 5*time.Millisecond)
}

func TestMountFileLeavesNothingBehind(t *testing.T) {
	r := newRig(t)
	r.fill()
	path := filepath.Join(t.TempDir(), "no image")
	noise := bytes.Repeat([]byte("noise"), 4096)
	data, v, err := formattest.WithTree(noise[:16384])
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, data, 0o600))
	_, err = MountFile(t.Context(), path, erofs.MountConfig{Target: r.target}, v)
	require.Error(t, err)
	require.Empty(t, r.source())
	require.Eventually(t, func() bool { return r.devices() == 0 }, patience, 5*time.Millisecond)
}

func TestAdoptNothing(t *testing.T) {
	r := newRig(t)
	_, err := r.d.Adopt(t.Context(), r.target, r.layer)
	require.ErrorContains(t, err, "not on EROFS")
}
