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
	require.Equal(t, fanotify.Name, recordedDriver(t, r, img))

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

func recordedDriver(t *testing.T, r *rig, img image) string {
	t.Helper()
	dir, err := r.c.Store.Dir(img.desc.Digest)
	require.NoError(t, err)
	rec, err := cache.LoadRecord(dir)
	require.NoError(t, err)
	return rec.Driver
}
