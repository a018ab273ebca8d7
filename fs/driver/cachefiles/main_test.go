package cachefiles

import (
	"testing"

	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
)

func TestMain(m *testing.M) { drivertest.Main(m) }
