//go:build guest

package cachefiles

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
)

func TestLaws(t *testing.T) {
	drivertest.Run(t, harness(t, Config{ReadAheadKB: 256}))
}

func newDriver(tb testing.TB, k *drivertest.Keeper, conf Config) *Driver {
	conf.Keeper = k
	d, err := New(context.Background(), conf)
	require.NoError(tb, err)
	return d
}

func harness(t *testing.T, conf Config) drivertest.Harness {
	conf.Dir = t.TempDir()
	return drivertest.Harness{
		NoDirect: true,
		New: func(tb testing.TB, k *drivertest.Keeper, inherited driver.Inheritance) driver.Server {
			conf.Inherited = inherited
			return newDriver(tb, k, conf)
		},
	}
}
