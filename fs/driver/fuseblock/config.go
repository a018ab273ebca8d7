package fuseblock

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/fusesession"
)

// Name is the driver's name in configuration and state.
const Name = "fuseblock"

// keepPrefix begins the names of kept descriptors: keepPrefix, the layer's ID,
// a dash, and targetLen characters of its target; what follows is fusesession's.
const (
	keepPrefix = "fuseblock-"
	targetLen  = 16
)

// SessionName is the place, as fusesession.NewName wants it, of the FUSE connections
// of a layer's mounts at target.
func SessionName(layerID, target string) string {
	sum := sha256.Sum256([]byte(target))
	return keepPrefix + layerID + "-" + hex.EncodeToString(sum[:targetLen/2])
}

// layerOf returns the ID of the layer of a kept connection; false for other
// names, those of states among them.
func layerOf(name string) (string, bool) {
	place, ok := fusesession.PlaceOf(name)
	rest, ours := strings.CutPrefix(place, keepPrefix)
	const tail = 1 + targetLen
	if !ok || !ours || len(rest) <= tail {
		return "", false
	}
	id, hash := rest[:len(rest)-tail], rest[len(rest)-tail:]
	_, err := hex.DecodeString(hash[1:])
	return id, hash[0] == '-' && err == nil
}

// Config is what New needs.
type Config struct {
	// Keeper guards the connections against the end of this process. Required:
	// without it the death of this process ends every mount.
	Keeper driver.Keeper
	// Inherited holds what a predecessor kept. The driver takes its own names out
	// of it.
	Inherited driver.Inheritance
	// DirectIO makes the kernel read the FUSE file with O_DIRECT, so that data is
	// cached once, in the mount.
	DirectIO bool
	// ReadAheadKB is the read-ahead of the mounts in KiB; 0 leaves the kernel's.
	ReadAheadKB int
	// MaxInFlight is how many reads of one mount may be taken and unanswered; 0
	// means 1024. More wait in the kernel.
	MaxInFlight int
	// Loops is how many goroutines take the requests of a mount; 0 means 2.
	Loops int
	// LoopDevices makes mounts go through loop devices also where the kernel
	// mounts files.
	LoopDevices bool
	// ReplayJournal makes adoption use the journal also where the kernel can send
	// requests again.
	ReplayJournal bool
}

var _ driver.Server = (*Driver)(nil)
