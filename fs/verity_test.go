package fs

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/cache"
	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
	"github.com/lazyerofs/lazyerofs/fs/driver/fanotify"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
	"github.com/lazyerofs/lazyerofs/fs/format/formattest"
	"github.com/lazyerofs/lazyerofs/fs/fsverity"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// treed is an image with a hash tree in the registry.
func (r *rig) treed(seed uint64, raw bool) image {
	r.t.Helper()
	img := drivertest.NewImage(r.t, seed, false)
	data, v, err := formattest.WithTree(img.Data)
	require.NoError(r.t, err)
	img.Data = data
	return r.publish(img, raw, func(d *ocispec.Descriptor) { v.Annotate(d.Annotations) })
}

// complete reports whether every byte of img is here and verified.
func (r *rig) complete(img image) bool {
	f := r.FS
	f.mu.Lock()
	s := f.layers[img.desc.Digest]
	f.mu.Unlock()
	if s == nil {
		return false
	}
	select {
	case <-s.layer.Complete():
		return true
	default:
		return false
	}
}

// mountedFrom is what is mounted at a target.
func mountedFrom(t *testing.T, at string) string {
	t.Helper()
	infos, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(at))
	require.NoError(t, err)
	require.Len(t, infos, 1)
	return infos[0].Source
}

// A layer with a hash tree loads lazily, from labels alone and from the draft's
// annotations, and becomes complete though nobody reads the tree.
func TestLayerWithAHashTree(t *testing.T) {
	for _, raw := range []bool{false, true} {
		t.Run(fmt.Sprintf("raw=%t", raw), func(t *testing.T) {
			r := newRig(t)
			img := r.treed(20, raw)
			at := r.mount("a", img)
			require.False(t, r.complete(img))
			r.requireTree(at, img)
			f, err := os.ReadDir(at)
			require.NoError(t, err)
			require.NotEmpty(t, f)
			r.readAll(img)
			eventually(t, "the layer is complete", func() bool { return r.complete(img) })
			require.NoError(t, r.Check(t.Context(), at), "its digest covers the tree")
			require.NoError(t, testenv.DropCaches())
			r.requireTree(at, img)
		})
	}
}

// readAll makes what no file holds resident too, but not the tree.
func (r *rig) readAll(img image) {
	r.t.Helper()
	l, release, err := r.Hold(r.t.Context(), img.labels, true)
	require.NoError(r.t, err)
	defer release()
	require.NoError(r.t, l.Ensure(r.t.Context(), 0, int64(len(img.Data))-(1<<16)))
}

// An image whose annotations misplace the tree is not mounted: the parser wants the
// superblock to say the same.
func TestMisplacedHashTree(t *testing.T) {
	r := newRig(t)
	img := drivertest.NewImage(t, 21, false)
	data, v, err := formattest.WithTree(img.Data)
	require.NoError(t, err)
	img.Data = data
	v.HashOffset -= 4096
	bad := r.publish(img, false, func(d *ocispec.Descriptor) { v.Annotate(d.Annotations) })
	silent := r.publish(img, true, nil) // bytes that nothing explains
	for name, labels := range map[string]map[string]string{"a": bad.labels, "b": silent.labels} {
		var refused *erofs.RefusedError
		require.ErrorAs(t, r.Mount(t.Context(), r.newTarget(name), labels), &refused)
		require.Equal(t, erofs.RuleSize, refused.Rule)
	}
}

// A complete layer is mounted through dm-verity the next time and its file sealed,
// where this machine can; where it cannot all goes on without, and restarts find
// what they need in both cases.
func TestKernelChecksCompleteLayers(t *testing.T) {
	r := newRig(t)
	r.stop()
	r.verity = true
	r.start()
	throughDM, sealing := r.dm.Probe(r.dir) == nil, fsverity.Probe(r.dir) == nil
	img := r.treed(22, false)
	at := r.mount("a", img)
	r.requireTree(at, img)
	r.readAll(img)
	eventually(t, "the layer is complete", func() bool { return r.complete(img) })
	dir, err := r.c.Store.Dir(img.desc.Digest)
	require.NoError(t, err)
	sealed := func() bool { _, err := os.Stat(filepath.Join(dir, "fsverity")); return err == nil }
	if sealing {
		eventually(t, "its file is sealed", sealed)
	}
	require.NoError(t, testenv.DropCaches())
	r.requireTree(at, img)

	second := r.mount("b", img)
	require.Equal(t, throughDM, strings.HasPrefix(mountedFrom(t, second), "/dev/dm-"), mountedFrom(t, second))
	r.requireTree(second, img)
	r.stop()
	r.start()
	for _, target := range []string{at, second} {
		require.NoError(t, r.Mount(t.Context(), target, img.labels))
		require.NoError(t, r.Check(t.Context(), target))
	}
	_, err = r.driver.Settle()
	require.NoError(t, err)
	require.NoError(t, testenv.DropCaches())
	r.requireTree(at, img)
	r.requireTree(second, img)
	require.Equal(t, sealing, sealed())
	rec, err := cache.LoadRecord(dir)
	require.NoError(t, err)
	want := map[bool]string{true: "dmverity", false: fanotify.Name}[throughDM]
	require.Equal(t, map[string]string{at: fanotify.Name, second: want}, rec.Mounts)

	// As after a reboot: nothing is mounted, and no network.
	for _, target := range []string{at, second} {
		require.NoError(t, r.Unmount(t.Context(), target))
	}
	eventually(t, "the layer is closed", func() bool { f := r.FS; f.mu.Lock(); defer f.mu.Unlock(); return len(f.layers) == 0 })
	online := r.offline()
	require.NoError(t, r.Mount(t.Context(), at, img.labels))
	r.requireTree(at, img)
	require.Equal(t, throughDM, strings.HasPrefix(mountedFrom(t, at), "/dev/dm-"))
	require.Empty(t, r.log.Requests(), "the registry was asked")
	online()
}

// The file of a layer that was unpacked here is sealed too, before it is mounted.
func TestUnpackedLayerIsSealed(t *testing.T) {
	r := newRig(t)
	r.stop()
	r.verity = true
	r.start()
	img := drivertest.NewImage(t, 23, false)
	file := filepath.Join(r.dir, "layer.erofs")
	require.NoError(t, os.WriteFile(file, img.Data, 0o600))
	at := r.newTarget("file")
	require.NoError(t, r.MountFile(t.Context(), at, file))
	r.requireTree(at, image{Image: img})
	w, err := os.OpenFile(file, os.O_RDWR, 0)
	if fsverity.Probe(r.dir) == nil {
		require.ErrorIs(t, err, unix.EPERM)
	} else {
		require.NoError(t, err)
		_, err = io.ReadFull(w, make([]byte, 10))
		require.NoError(t, err)
		require.NoError(t, w.Close())
	}
	require.NoError(t, r.MountFile(t.Context(), r.newTarget("again"), file), "sealed already")
}
