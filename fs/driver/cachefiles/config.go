package cachefiles

import (
	"crypto/rand"
	"fmt"
	"strings"

	"github.com/lazyerofs/lazyerofs/fs/driver"
)

// Name is the driver's name in configuration and state.
const Name = "cachefiles"

// DeviceName is the name under which the open /dev/cachefiles is kept.
const DeviceName = "cachefiles-device"

// objectPrefix begins the names of kept objects.
const objectPrefix = "cachefiles-object-"

// domain is the volume that all mounts share. A volume of its own for each would
// cost 256 directories.
const domain = "lazyerofs"

// Config is what New needs.
type Config struct {
	// Keeper holds the device and the objects beyond the end of this process.
	// Required: when the device is closed, every mount gives EIO for ever.
	Keeper driver.Keeper
	// Inherited holds what a predecessor kept; the driver takes its own over.
	Inherited driver.Inheritance
	// Dir is the directory of the kernel's cache, below our cache root, on ext4 or
	// xfs. It is scratch: it is emptied before it is bound. Without it only Probe works.
	Dir string
	// ReadAheadKB is the read-ahead of the mounts in KiB; 0 leaves the kernel's.
	ReadAheadKB int
	// MaxInFlight is how many requests are answered at once; 0 means 256. The
	// reader loop waits when it is reached.
	MaxInFlight int
}

func (c *Config) defaults() {
	if c.MaxInFlight == 0 {
		c.MaxInFlight = 256
	}
}

var _ driver.Server = (*Driver)(nil)

// base is what the cookie keys of one mount begin with. No two mounts of a boot
// share one, so that no cache file ever serves a second mount.
func base(layerID string) string { return layerID + "." + strings.ToLower(rand.Text()[:10]) }

// Cookie keys are a base and one of these.
const (
	metaSuffix = ".m" // a metadata image
	dataSuffix = ".d" // Layer.Data
)

// splitKey takes a cookie key apart; ok is false for one that base did not make.
func splitKey(key string) (base, layerID string, ok bool) {
	base, ok = strings.CutSuffix(key, metaSuffix)
	if !ok {
		if base, ok = strings.CutSuffix(key, dataSuffix); !ok {
			return "", "", false
		}
	}
	i := strings.LastIndexByte(base, '.')
	if i <= 0 || i == len(base)-1 {
		return "", "", false
	}
	return base, base[:i], true
}

// kept is what the name of a kept object says: enough to answer its OPEN again
// and to know what it is of.
type kept struct {
	msg, id uint32
	size    int64
	key     string
}

func (k kept) name() string {
	return fmt.Sprintf("%s%d-%d-%d-%s", objectPrefix, k.msg, k.id, k.size, k.key)
}

// parseKept is the inverse of name.
func parseKept(name string) (k kept, ok bool) {
	rest, ok := strings.CutPrefix(name, objectPrefix)
	if !ok {
		return k, false
	}
	parts := strings.SplitN(rest, "-", 4)
	if len(parts) != 4 {
		return k, false
	}
	if _, err := fmt.Sscanf(strings.Join(parts[:3], " "), "%d %d %d", &k.msg, &k.id, &k.size); err != nil {
		return kept{}, false
	}
	k.key = parts[3]
	_, _, ok = splitKey(k.key)
	if !ok || k.size < 0 || k.name() != name {
		return kept{}, false
	}
	return k, true
}
