package layer_test

import (
	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/layer"
)

// A Layer is what a driver asks for; this package may not import driver, so the
// proof is here.
var _ driver.Treed = (*layer.Layer)(nil)
