package all

import (
	"context"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/fanotify"
)

// Config configures every driver.
type Config struct {
	// Fanotify is for Linux 6.14 and newer.
	Fanotify fanotify.Config
}

// New makes every driver, for driver.Select to choose from. A driver asks
// nothing of the kernel before it is probed or used, except when a predecessor
// left it something to serve.
func New(ctx context.Context, conf Config) ([]driver.Driver, error) {
	f, err := fanotify.New(ctx, conf.Fanotify)
	if err != nil {
		return nil, err
	}
	return []driver.Driver{f}, nil
}
