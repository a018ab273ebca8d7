package fuseblock

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
)

// configs are how the laws are tried.
var configs = map[string]Config{
	"default":  {},
	"replay":   {ReplayJournal: true, Loops: 1},
	"few":      {MaxInFlight: 6, Loops: 2},
	"directio": {DirectIO: true, ReadAheadKB: 1024},
	"loop":     {LoopDevices: true},
	"loop dio": {LoopDevices: true, DirectIO: true, ReadAheadKB: 1024, ReplayJournal: true},
}

func TestMain(m *testing.M) {
	if target := os.Getenv(mounterEnv); target != "" {
		fmt.Fprintln(os.Stderr, mounter(target))
		os.Exit(1) //nolint:forbidigo // this is the main of the child
	}
	var all []drivertest.Harness
	for name, conf := range configs {
		all = append(all, harness(name, conf))
	}
	drivertest.Main(m, all...)
}

func newDriver(tb testing.TB, k *drivertest.Keeper, conf Config) *Driver {
	conf.Keeper = k
	d, err := New(context.Background(), conf)
	require.NoError(tb, err)
	return d
}

func TestLaws(t *testing.T) {
	for name, conf := range configs {
		t.Run(name, func(t *testing.T) { drivertest.Run(t, harness(name, conf)) })
	}
}

func harness(name string, conf Config) drivertest.Harness {
	return drivertest.Harness{
		Name: name, SurvivesKill: true,
		New: func(tb testing.TB, k *drivertest.Keeper, inherited driver.Inheritance) driver.Server {
			conf.Inherited = inherited
			return newDriver(tb, k, conf)
		},
	}
}
