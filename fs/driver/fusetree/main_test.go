package fusetree

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
)

var harness = drivertest.Harness{
	Name:         Name,
	SurvivesKill: true,
	New: func(tb testing.TB, k *drivertest.Keeper, inherited driver.Inheritance) driver.Server {
		d, err := New(context.Background(), Config{Keeper: k, Inherited: inherited})
		require.NoError(tb, err)
		return d
	},
}

func TestMain(m *testing.M) { drivertest.Main(m, harness) }

func TestLaws(t *testing.T) { drivertest.Run(t, harness) }
