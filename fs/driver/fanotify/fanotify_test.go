package fanotify

import (
	"context"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
)

func TestMain(m *testing.M) { drivertest.Main(m) }

func newDriver(tb testing.TB, k *drivertest.Keeper, conf Config) *Driver {
	conf.Keeper = k
	d, err := New(context.Background(), conf)
	require.NoError(tb, err)
	return d
}

func TestLaws(t *testing.T) {
	for name, conf := range map[string]Config{
		"one reader":    {Readers: 1},
		"few fills":     {Readers: 1, MaxInFlight: 2},
		"three readers": {Readers: 3},
		"directio":      {DirectIO: true, ReadAheadKB: 1024},
	} {
		t.Run(name, func(t *testing.T) { drivertest.Run(t, harness(conf)) })
	}
}

func harness(conf Config) drivertest.Harness {
	return drivertest.Harness{
		LeavesAtOnce: true,
		New: func(tb testing.TB, k *drivertest.Keeper, inherited driver.Inheritance) driver.Server {
			conf.Inherited = inherited
			return newDriver(tb, k, conf)
		},
		DataOf: func(inherited driver.Inheritance, id string) *os.File {
			return inherited[WriterName(id)][0]
		},
	}
}
