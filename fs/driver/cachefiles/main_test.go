package cachefiles

import (
	"testing"

	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
)

// harnesses are those of the laws, which run in a guest only.
var harnesses []drivertest.Harness

func TestMain(m *testing.M) { drivertest.Main(m, harnesses...) }
