//go:build guest

package cachefiles

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
)

func init() { harnesses = append(harnesses, harness()) }

func TestLaws(t *testing.T) { drivertest.Run(t, harness()) }

func newDriver(tb testing.TB, k *drivertest.Keeper, conf Config) *Driver {
	conf.Keeper = k
	d, err := New(context.Background(), conf)
	require.NoError(tb, err)
	return d
}

func harness() drivertest.Harness {
	return drivertest.Harness{
		Name:         Name,
		NoDirect:     true,
		SurvivesKill: true,
		New: func(tb testing.TB, k *drivertest.Keeper, inherited driver.Inheritance) driver.Server {
			return newDriver(tb, k, Config{
				ReadAheadKB: 256, Inherited: inherited,
				// The same in the child that is killed.
				Dir: filepath.Join(os.TempDir(), "cachefiles"),
			})
		},
	}
}
