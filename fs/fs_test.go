package fs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
	"github.com/lazyerofs/lazyerofs/fs/remote/remotetest"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// eventually waits for a state that another goroutine brings about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, 20*time.Second, 5*time.Millisecond, what)
}

// reason is the word of a failed Mount.
func reason(t *testing.T, err error) string {
	t.Helper()
	var m *MountError
	require.ErrorAs(t, err, &m)
	require.Equal(t, m.Reason, m.MissReason())
	return m.Reason
}

func TestMountReadsOnlyWhatIsAskedFor(t *testing.T) {
	for _, raw := range []bool{false, true} {
		t.Run(fmt.Sprintf("raw=%t", raw), func(t *testing.T) {
			r := newRig(t)
			img := r.publish(drivertest.NewImage(t, 1, false), raw, nil)
			at := r.mount("a", img)
			require.LessOrEqual(t, r.requests(img), 4, "requests before the mount is ready")
			require.NoError(t, r.Check(t.Context(), at))
			r.requireTree(at, img)
			for _, q := range r.log.Matching("GET", img.desc.Digest.String()) {
				require.NotEmpty(t, q.Range, "a whole layer was fetched")
			}
			require.NoError(t, r.Unmount(t.Context(), at))
			require.NoError(t, r.Unmount(t.Context(), at), "nothing is mounted any more")
			require.ErrorIs(t, r.Check(t.Context(), at), ErrNotMounted)
			eventually(t, "the layer is closed", func() bool { return r.c.Store.Remove(img.desc.Digest) == nil })
			require.Empty(t, r.keeper.Names(), "descriptors are kept for nobody")
		})
	}
}

func TestMountsOfOneBlobShareTheLayer(t *testing.T) {
	r := newRig(t)
	img := r.publish(drivertest.NewImage(t, 2, false), false, nil)
	ats := make([]string, 6)
	var wg sync.WaitGroup
	errs := make([]error, len(ats))
	for i := range ats {
		ats[i] = r.newTarget(fmt.Sprint(i))
		wg.Go(func() { errs[i] = r.Mount(t.Context(), ats[i], img.labels) })
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
	before := r.requests(img)
	require.LessOrEqual(t, before, 4)
	r.requireTree(ats[0], img)
	first := r.requests(img)
	for _, at := range ats[1:] {
		r.requireTree(at, img)
	}
	require.Equal(t, first, r.requests(img), "the same data was fetched again")
	for _, at := range ats[1:] {
		require.NoError(t, r.Unmount(t.Context(), at))
	}
	require.NoError(t, testenv.DropCaches())
	r.requireTree(ats[0], img)
	require.NoError(t, r.Check(t.Context(), ats[0]))
}

// A process ends over a live mount of an incomplete layer; the next one takes it
// over without the registry, and goes on filling it.
func TestRestartOverALiveMount(t *testing.T) {
	r := newRig(t)
	img := r.publish(drivertest.NewImage(t, 3, false), false, nil)
	at := r.mount("a", img)
	before, err := os.ReadFile(filepath.Join(at, "dir0/file3"))
	require.NoError(t, err)
	require.Equal(t, img.Files["dir0/file3"], before)
	r.stop()
	require.NotEmpty(t, r.keeper.Names(), "nobody guards the mount")

	online := r.offline()
	r.start()
	require.ErrorIs(t, r.Check(t.Context(), at), ErrNotMounted)
	require.NoError(t, r.Mount(t.Context(), at, img.labels))
	orphans, err := r.driver.Settle()
	require.NoError(t, err)
	require.Empty(t, orphans)
	require.NoError(t, r.Check(t.Context(), at))
	require.Empty(t, r.log.Requests(), "the registry was asked")
	mounts, err := testenv.Mounts(r.dir)
	require.NoError(t, err)
	require.Len(t, mounts, 1, "mounted again over the live mount")
	online()
	require.NoError(t, testenv.DropCaches())
	r.requireTree(at, img)
}

// After a reboot nothing is mounted and the registry is down: what was here is
// here, and what was not is an error, never zeros.
func TestRebootWithoutARegistry(t *testing.T) {
	r := newRig(t)
	img := r.publish(drivertest.NewImage(t, 4, false), false, nil)
	at := r.mount("a", img)
	_, err := os.ReadFile(filepath.Join(at, "dir2/file8"))
	require.NoError(t, err)
	require.NoError(t, unix.Unmount(at, 0))
	r.stop()
	require.Empty(t, r.keeper.Names())

	online := r.offline()
	r.start()
	require.NoError(t, testenv.DropCaches())
	require.NoError(t, r.Mount(t.Context(), at, img.labels))
	require.Empty(t, r.log.Requests(), "the registry was asked")
	got, err := os.ReadFile(filepath.Join(at, "dir2/file8"))
	require.NoError(t, err)
	require.True(t, string(img.Files["dir2/file8"]) == string(got))
	_, err = os.ReadFile(filepath.Join(at, "dir0/file9"))
	require.ErrorIs(t, err, unix.EIO)
	online()
	r.requireTree(at, img)
}

func TestReasons(t *testing.T) {
	r := newRig(t)
	good := r.publish(drivertest.NewImage(t, 5, false), false, nil)
	rawGood := r.publish(drivertest.NewImage(t, 6, false), true, nil)
	strip := func(key string) func(*ocispec.Descriptor) {
		return func(d *ocispec.Descriptor) { delete(d.Annotations, key) }
	}
	other := digest.FromString("other").String()
	cases := map[string]struct {
		labels map[string]string
		want   string
		says   string
	}{
		"no labels":       {nil, ReasonSource, "enable_remote_snapshot_annotations"},
		"hostile digest":  {with(good.labels, "containerd.io/snapshot/cri.layer-digest", "sha256:../../etc"), ReasonSource, ""},
		"hostile ref":     {with(good.labels, "containerd.io/snapshot/cri.image-ref", "file:///etc/passwd"), ReasonSource, ""},
		"raw by another":  {with(rawGood.labels, labelDiffID, other), ReasonIdentity, "stored as it is"},
		"zstd by another": {with(good.labels, labelDiffID, other), ReasonIdentity, "the image calls it"},
		"malformed claim": {with(good.labels, labelDiffID, "sha256:zz"), ReasonIdentity, "malformed"},
		"tar": {r.publish(drivertest.NewImage(t, 7, false), false, func(d *ocispec.Descriptor) {
			d.MediaType = ocispec.MediaTypeImageLayerGzip
		}).labels, ReasonFormat, "tar+gzip"},
		"no index": {r.publish(drivertest.NewImage(t, 8, false), false, strip(chunk.AnnotationIndexRange)).labels, ReasonFormat, ""},
		"wrong index": {r.publish(drivertest.NewImage(t, 9, false), false, func(d *ocispec.Descriptor) {
			d.Annotations[chunk.AnnotationIndexDigest] = other
		}).labels, ReasonCorrupt, "digest"},
		"unknown manifest": {with(r.publish(drivertest.NewImage(t, 10, false), false, nil).labels,
			"containerd.io/snapshot/cri.manifest-digest", other), ReasonRegistry, ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			at := r.newTarget(strings.ReplaceAll(name, " ", "-"))
			err := r.Mount(t.Context(), at, c.labels)
			require.Equal(t, c.want, reason(t, err), "%v", err)
			require.ErrorContains(t, err, c.says)
			mounts, err := testenv.Mounts(at)
			require.NoError(t, err)
			require.Empty(t, mounts)
		})
	}
	t.Run("registry down", func(t *testing.T) {
		img := r.publish(drivertest.NewImage(t, 11, false), false, nil)
		online := r.offline()
		defer online()
		require.Equal(t, ReasonRegistry, reason(t, r.Mount(t.Context(), r.newTarget("down"), img.labels)))
	})
	t.Run("too slow", func(t *testing.T) {
		img := r.publish(drivertest.NewImage(t, 12, false), false, nil)
		r.faults.Add("GET", "", remotetest.Always, remotetest.Hang)
		defer r.faults.Clear()
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		require.Equal(t, ReasonTimeout, reason(t, r.Mount(ctx, r.newTarget("slow"), img.labels)))
	})
	t.Run("no driver", func(t *testing.T) {
		f := New(t.Context(), Config{NoDriver: driver.ErrNoDriver})
		err := f.Mount(t.Context(), r.newTarget("none"), good.labels)
		require.Equal(t, ReasonDriver, reason(t, err))
		require.ErrorIs(t, err, driver.ErrNoDriver)
		require.NoError(t, f.Close(t.Context()))
	})
	require.Empty(t, r.keeper.Names())
}

// A chunk that lies: EIO for who reads it, all other files stay readable.
func TestFlippedBit(t *testing.T) {
	r := newRig(t)
	img := r.publish(drivertest.NewImage(t, 13, false), true, nil)
	at := r.mount("a", img)
	r.faults.Add("GET", "blobs/", remotetest.Always, remotetest.Flip(0))
	_, err := os.ReadFile(filepath.Join(at, "dir0/file9"))
	require.ErrorIs(t, err, unix.EIO)
	r.faults.Clear()
	r.requireTree(at, img)
}

// An image that gives another index for a blob that is here does not get the one
// that is here, and the one that is here stays.
func TestAnotherIndexForTheSameBlob(t *testing.T) {
	r := newRig(t)
	img := r.publish(drivertest.NewImage(t, 14, false), false, nil)
	at := r.mount("a", img)
	forged := img.desc
	forged.Annotations = with(img.desc.Annotations, chunk.AnnotationIndexDigest, digest.FromString("mine").String())
	labels := r.labels(forged, img.labels[labelDiffID])
	require.Equal(t, ReasonIdentity, reason(t, r.Mount(t.Context(), r.newTarget("b"), labels)))
	require.NoError(t, r.Unmount(t.Context(), at))
	eventually(t, "the layer is closed", func() bool { f := r.FS; f.mu.Lock(); defer f.mu.Unlock(); return len(f.layers) == 0 })
	forgedLabels := with(labels, chunk.LabelIndexDigest, forged.Annotations[chunk.AnnotationIndexDigest])
	require.Equal(t, ReasonIdentity, reason(t, r.Mount(t.Context(), r.newTarget("b"), forgedLabels)), "from the record")
	require.NoError(t, r.Mount(t.Context(), at, img.labels))
	r.requireTree(at, img)
}

// A layer that claims a diff id which its content does not have is found out when
// the last chunk arrives: no new mount, and the old one stays.
func TestWrongWholeIsQuarantined(t *testing.T) {
	r := newRig(t)
	claimed := digest.FromString("something else").String()
	img := r.publish(drivertest.NewImage(t, 15, false), false, func(d *ocispec.Descriptor) {
		d.Annotations[chunk.AnnotationUncompressedDigest] = claimed
	})
	img.labels[labelDiffID] = claimed
	at := r.mount("a", img)
	require.NoError(t, r.FS.layers[img.desc.Digest].layer.Fill(t.Context()))
	eventually(t, "the layer is found out", func() bool { return r.Check(t.Context(), at) != nil })
	err := r.Check(t.Context(), at)
	require.Equal(t, ReasonQuarantine, reason(t, err))
	require.Equal(t, ReasonQuarantine, reason(t, r.Mount(t.Context(), at, img.labels)))
	require.Equal(t, ReasonQuarantine, reason(t, r.Mount(t.Context(), r.newTarget("b"), img.labels)))
	r.requireTree(at, img)
}

// The verdict on a layer's claim outlives the process that found it, at once.
func TestVerdictOutlivesTheProcess(t *testing.T) {
	r := newRig(t)
	claimed := digest.FromString("something else").String()
	img := r.publish(drivertest.NewImage(t, 15, false), false, func(d *ocispec.Descriptor) {
		d.Annotations[chunk.AnnotationUncompressedDigest] = claimed
	})
	img.labels[labelDiffID] = claimed
	at := r.mount("a", img)
	require.NoError(t, r.FS.layers[img.desc.Digest].layer.Fill(t.Context()))
	eventually(t, "the layer is found out", func() bool { return r.Check(t.Context(), at) != nil })
	r.stop()
	r.start()
	require.NoError(t, r.Mount(t.Context(), at, img.labels), "what is mounted is taken over")
	require.Equal(t, ReasonQuarantine, reason(t, r.Check(t.Context(), at)))
	require.Equal(t, ReasonQuarantine, reason(t, r.Mount(t.Context(), r.newTarget("b"), img.labels)))
	r.requireTree(at, img)
}

// A claim that nothing has confirmed is no obstacle for an image that claims
// another; a claim that was confirmed is.
func TestUnconfirmedClaimDoesNotStick(t *testing.T) {
	r := newRig(t)
	img := r.publish(drivertest.NewImage(t, 17, false), false, nil)
	forged := digest.FromString("mine").String()
	lie := r.labels(img.desc, forged)
	for _, key := range []string{chunk.LabelUncompressedDigest, chunk.AnnotationUncompressedDigest} {
		lie[key] = forged
	}
	closed := func() {
		eventually(t, "the layer is closed", func() bool { f := r.FS; f.mu.Lock(); defer f.mu.Unlock(); return len(f.layers) == 0 })
	}
	at := r.newTarget("a")
	require.NoError(t, r.Mount(t.Context(), at, lie))
	require.NoError(t, r.Unmount(t.Context(), at))
	closed()
	require.NoError(t, r.Mount(t.Context(), at, img.labels))
	l := r.FS.layers[img.desc.Digest].layer
	require.NoError(t, l.Fill(t.Context()))
	<-l.Complete()
	require.NoError(t, r.Unmount(t.Context(), at))
	closed()
	require.Equal(t, ReasonIdentity, reason(t, r.Mount(t.Context(), at, lie)))
	require.NoError(t, r.Mount(t.Context(), at, img.labels))
	r.requireTree(at, img)
}

func TestQuarantineByDriver(t *testing.T) {
	r := newRig(t)
	img := r.publish(drivertest.NewImage(t, 16, false), false, nil)
	at := r.mount("a", img)
	s := r.layers[img.desc.Digest]
	require.Equal(t, s.layer.ID(), layerID(img.desc.Digest), "drivers and this package name layers differently")
	r.Quarantine([]string{"sha256-of-another"}, errors.New("events were lost"))
	require.NoError(t, r.Check(t.Context(), at))
	r.Quarantine([]string{s.layer.ID()}, errors.New("events were lost"))
	require.ErrorContains(t, r.Check(t.Context(), at), "events were lost")
}

// Somebody unmounts behind our back: the next Mount mounts, and the end of the
// process leaves no guard behind.
func TestUnmountedByOthers(t *testing.T) {
	r := newRig(t)
	img := r.publish(drivertest.NewImage(t, 17, false), false, nil)
	at := r.mount("a", img)
	require.NoError(t, unix.Unmount(at, 0))
	require.NoError(t, r.Mount(t.Context(), at, img.labels))
	r.requireTree(at, img)
	require.NoError(t, unix.Unmount(at, 0))
	require.NoError(t, os.Remove(at))
	r.stop()
	require.Empty(t, r.keeper.Names())
	require.NoError(t, os.Mkdir(at, 0o755))
}

// A record that the disk spoilt is fetched again.
func TestSpoiltRecord(t *testing.T) {
	for _, name := range []string{"meta.json", "index"} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			img := r.publish(drivertest.NewImage(t, 18, false), false, nil)
			at := r.mount("a", img)
			require.NoError(t, unix.Unmount(at, 0))
			r.stop()
			dir := filepath.Join(r.dir, "cache", "layers", layerID(img.desc.Digest))
			require.FileExists(t, filepath.Join(dir, name))
			require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("{"), 0o600))
			r.start()
			require.NoError(t, r.Mount(t.Context(), at, img.labels))
			r.requireTree(at, img)
		})
	}
}

func TestMountFile(t *testing.T) {
	r := newRig(t)
	img := drivertest.NewImage(t, 19, false)
	file := filepath.Join(r.dir, "layer.erofs")
	require.NoError(t, os.WriteFile(file, img.Data, 0o600))
	at := r.newTarget("a")
	require.NoError(t, r.MountFile(t.Context(), at, file))
	require.NoError(t, r.MountFile(t.Context(), at, file), "it is there")
	require.NoError(t, r.Check(t.Context(), at))
	r.requireTree(at, image{Image: img})
	r.stop()
	r.start()
	require.ErrorIs(t, r.Check(t.Context(), at), ErrNotMounted)
	require.NoError(t, r.MountFile(t.Context(), at, file))
	mounts, err := testenv.Mounts(at)
	require.NoError(t, err)
	require.Len(t, mounts, 1)
	require.NoError(t, r.Unmount(t.Context(), at))
	require.Error(t, r.MountFile(t.Context(), at, file+".missing"))
}

func TestClosed(t *testing.T) {
	r := newRig(t)
	img := r.publish(drivertest.NewImage(t, 20, false), false, nil)
	f, d := r.FS, r.driver
	require.NoError(t, d.Shutdown(t.Context()))
	require.NoError(t, f.Close(t.Context()))
	require.ErrorIs(t, f.Mount(t.Context(), r.newTarget("a"), img.labels), ErrClosed)
	require.NoError(t, r.resolver.Close())
	r.hosts.Close()
	r.process = nil
}
