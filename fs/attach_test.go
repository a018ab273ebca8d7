package fs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/cache"
	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
	"github.com/lazyerofs/lazyerofs/fs/driver/fanotify"
)

// broken is a driver that mounts nothing.
type broken struct{ driver.Driver }

func (broken) Name() string { return "broken" }

func (broken) Probe(string) error { return nil }

func (broken) Mount(context.Context, string, driver.Layer) (driver.Mount, error) {
	return nil, errors.New("no more devices")
}

// A layer that the preferred driver fails to mount goes to the next one, which
// alone takes it over after a restart.
func TestFallsToTheNextDriver(t *testing.T) {
	r := newRig(t)
	img := r.publish(drivertest.NewImage(t, 31, false), true, nil)
	r.c.Drivers = []driver.Driver{broken{}, r.driver}
	at := r.mount("a", img)
	got, err := os.ReadFile(filepath.Join(at, "dir0/file9"))
	require.NoError(t, err)
	require.Equal(t, img.Files["dir0/file9"], got)
	require.Equal(t, map[string]string{at: fanotify.Name}, recorded(t, r, img).Mounts)

	r.stop()
	r.start()
	r.c.Adopters = []driver.Driver{broken{}, r.driver}
	require.NoError(t, r.Mount(t.Context(), at, img.labels))
	require.Equal(t, 1, r.driver.Stats().Served)

	r.stop()
	r.start()
	r.c.Adopters = []driver.Driver{broken{}}
	err = r.Mount(t.Context(), at, img.labels)
	require.ErrorContains(t, err, `was made by driver "fanotify", which this process does not have`)
	require.Equal(t, ReasonDriver, reason(t, err))
}

// When no driver can, the reasons of all are given.
func TestEveryDriverFails(t *testing.T) {
	r := newRig(t)
	img := r.publish(drivertest.NewImage(t, 32, false), true, nil)
	r.c.Drivers = []driver.Driver{broken{}, broken{}}
	err := r.Mount(t.Context(), r.newTarget("a"), img.labels)
	require.Equal(t, ReasonDriver, reason(t, err))
	require.ErrorContains(t, err, "driver broken: no more devices")
}

// The driver that is preferred may change while mounts stay: each is taken over by
// the one that made it, and what is unmounted is forgotten.
func TestOneLayerByTwoDrivers(t *testing.T) {
	r := newRig(t)
	img := r.publish(drivertest.NewImage(t, 33, false), true, nil)
	first, gone := r.mount("a", img), r.mount("gone", img)
	require.NoError(t, r.Unmount(t.Context(), gone))
	other := &renamed{Driver: r.driver}
	r.c.Drivers = []driver.Driver{other}
	second := r.mount("b", img)
	require.Equal(t, map[string]string{first: fanotify.Name, second: "renamed"}, recorded(t, r, img).Mounts)

	r.stop()
	r.start()
	other = &renamed{Driver: r.driver}
	r.c.Adopters = []driver.Driver{other, r.driver}
	require.NoError(t, r.Mount(t.Context(), first, img.labels))
	require.Empty(t, other.adopted)
	require.NoError(t, r.Mount(t.Context(), second, img.labels))
	require.Equal(t, []string{second}, other.adopted)
	r.requireTree(first, img)
	r.requireTree(second, img)
}

// What is about to be mounted is not taken for what is gone.
func TestAMountOnItsWayStaysRecorded(t *testing.T) {
	r := newRig(t)
	img := r.publish(drivertest.NewImage(t, 35, false), true, nil)
	inner := r.newTarget("inner")
	r.c.Drivers = []driver.Driver{&nested{Driver: r.driver, mount: func() {
		require.NoError(t, r.Mount(t.Context(), inner, img.labels))
	}}}
	outer := r.mount("outer", img)
	require.Equal(t, map[string]string{inner: fanotify.Name, outer: fanotify.Name}, recorded(t, r, img).Mounts)
}

// nested mounts something else before it mounts for the first time.
type nested struct {
	driver.Driver
	mount func()
}

func (d *nested) Mount(ctx context.Context, target string, l driver.Layer) (driver.Mount, error) {
	if do := d.mount; do != nil {
		d.mount = nil
		do()
	}
	return d.Driver.Mount(ctx, target, l)
}

// Records of before a mount had an entry of its own name one driver for all.
func TestAnOlderRecordNamesTheDriver(t *testing.T) {
	r := newRig(t)
	img := r.publish(drivertest.NewImage(t, 34, false), true, nil)
	at := r.mount("a", img)
	dir, err := r.c.Store.Dir(img.desc.Digest)
	require.NoError(t, err)
	rec := recorded(t, r, img)
	rec.Mounts, rec.Driver = nil, fanotify.Name
	require.NoError(t, cache.SaveRecord(dir, rec))
	r.stop()
	r.start()
	r.c.Adopters = []driver.Driver{broken{}, r.driver}
	require.NoError(t, r.Mount(t.Context(), at, img.labels))
}

// renamed is a driver under another name, which notes what it takes over.
type renamed struct {
	driver.Driver
	adopted []string
}

func (*renamed) Name() string { return "renamed" }

func (d *renamed) Adopt(ctx context.Context, target string, l driver.Layer) (driver.Mount, error) {
	d.adopted = append(d.adopted, target)
	return d.Driver.Adopt(ctx, target, l)
}

func recorded(t *testing.T, r *rig, img image) cache.Record {
	t.Helper()
	dir, err := r.c.Store.Dir(img.desc.Digest)
	require.NoError(t, err)
	rec, err := cache.LoadRecord(dir)
	require.NoError(t, err)
	return rec
}
