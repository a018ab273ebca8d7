package fanotify

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
	"github.com/lazyerofs/lazyerofs/fs/kernel"
)

func TestMain(m *testing.M) { drivertest.Main(m) }

// mountWith mounts as the daemon does, with extra options.
func mountWith(flags ...string) MountFunc {
	return func(_ context.Context, source, device, target string) error {
		fs, err := kernel.OpenFS("erofs")
		if err != nil {
			return err
		}
		defer func() { _ = fs.Close() }()
		err = fs.SetString("source", source)
		if device != "" {
			err = errors.Join(err, fs.SetString("device", device))
		}
		for _, flag := range flags {
			err = errors.Join(err, fs.SetFlag(flag))
		}
		if err = errors.Join(err, fs.Create()); err != nil {
			return err
		}
		m, err := fs.Mount(unix.MOUNT_ATTR_RDONLY)
		if err != nil {
			return err
		}
		defer func() { _ = m.Close() }()
		return unix.MoveMount(int(m.Fd()), "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
	}
}

func newDriver(tb testing.TB, k *drivertest.Keeper, conf Config) *Driver {
	conf.Keeper = k
	if conf.Mount == nil {
		conf.Mount = mountWith()
	}
	d, err := New(context.Background(), conf)
	require.NoError(tb, err)
	return d
}

func TestLaws(t *testing.T) {
	for name, conf := range map[string]Config{
		"one reader":    {Readers: 1},
		"few fills":     {Readers: 1, MaxInFlight: 2},
		"three readers": {Readers: 3},
		"directio":      {Mount: mountWith("directio")},
	} {
		t.Run(name, func(t *testing.T) { drivertest.Run(t, harness(conf)) })
	}
}

func harness(conf Config) drivertest.Harness {
	return drivertest.Harness{
		New: func(tb testing.TB, k *drivertest.Keeper, inherited map[string][]*os.File) driver.Driver {
			conf.Inherited = inherited
			return newDriver(tb, k, conf)
		},
		Shutdown: func(ctx context.Context, d driver.Driver) error { return d.(*Driver).Shutdown(ctx) },
		DataOf: func(inherited map[string][]*os.File, id string) *os.File {
			return inherited[WriterName(id)][0]
		},
	}
}
