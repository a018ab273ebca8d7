package fanotify

import (
	"github.com/lazyerofs/lazyerofs/fs/driver"
)

// Name is the driver's name in configuration and state.
const Name = "fanotify"

// GroupName is the name under which the group is kept.
const GroupName = "fanotify-group"

// writerPrefix begins the names of kept writers.
const writerPrefix = "fanotify-writer-"

// WriterName is the name under which the writer of a layer's data file is kept:
// Layer.Data from before the mark. A successor must open the layer on the
// descriptor that it inherited under this name, since one that it opens itself
// raises events for its own reads and writes.
func WriterName(layerID string) string { return writerPrefix + layerID }

// Config is what New needs.
type Config struct {
	// Keeper guards the group against the end of this process. Required: without
	// it the death of this process turns holes into zeros.
	Keeper driver.Keeper
	// Inherited holds what a predecessor kept. The driver takes the group over and
	// only looks at the writers.
	Inherited driver.Inheritance
	// DirectIO makes the kernel read data files with O_DIRECT, so that data is
	// cached once, in the mount, and not in the data file's page cache too.
	DirectIO bool
	// ReadAheadKB is the read-ahead of the mounts in KiB; 0 leaves the kernel's.
	ReadAheadKB int
	// MaxInFlight is how many fills run at once; 0 means 1024. The reader loops
	// wait when it is reached.
	MaxInFlight int
	// Readers is how many loops take events; 0 means 1.
	Readers int
	// Quarantine, if set, is told the IDs of layers whose mounts may have read
	// zeros: events were lost, or a mount was found without its guard. It must
	// not block.
	Quarantine func(layerIDs []string, why error)
}

func (c *Config) defaults() {
	if c.MaxInFlight == 0 {
		c.MaxInFlight = 1024
	}
	if c.Readers == 0 {
		c.Readers = 1
	}
	if c.Quarantine == nil {
		c.Quarantine = func([]string, error) {}
	}
}

var _ driver.Server = (*Driver)(nil)
