package fuseblock

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/lazyerofs/lazyerofs/fs/driver"
)

// Name is the driver's name in configuration and state.
const Name = "fuseblock"

// keepPrefix begins the names of kept descriptors: keepPrefix, the layer's ID,
// a dash, and targetLen characters of its target; then a dash and timeLen of the
// time at which it was mounted. A closed mount may be read for long, and another be
// made at its place meanwhile.
const (
	keepPrefix = "fuseblock-"
	targetLen  = 16
	timeLen    = 16
)

// keptName is the name under which a new connection is kept, greater than those of
// older ones.
func keptName(session string) string {
	return fmt.Sprintf("%s-%0*x", session, timeLen, time.Now().UnixNano())
}

// SessionName begins the names under which the FUSE connections of a layer's mounts
// at target are kept; fusesession.StateName has their states.
func SessionName(layerID, target string) string {
	sum := sha256.Sum256([]byte(target))
	return keepPrefix + layerID + "-" + hex.EncodeToString(sum[:targetLen/2])
}

// layerOf returns the ID of the layer of a kept connection; false for other
// names, those of states among them.
func layerOf(name string) (string, bool) {
	rest, ok := strings.CutPrefix(name, keepPrefix)
	const tail = 1 + targetLen + 1 + timeLen
	if !ok || len(rest) <= tail {
		return "", false
	}
	id, hash, mounted := rest[:len(rest)-tail], rest[len(rest)-tail:len(rest)-timeLen-1], rest[len(rest)-timeLen-1:]
	_, err := hex.DecodeString(hash[1:] + mounted[1:])
	return id, hash[0] == '-' && mounted[0] == '-' && err == nil
}

// Config is what New needs.
type Config struct {
	// Keeper guards the connections against the end of this process. Required:
	// without it the death of this process ends every mount.
	Keeper driver.Keeper
	// Inherited holds what a predecessor kept. The driver takes its own names out
	// of it.
	Inherited driver.Inheritance
	// DirectIO makes the kernel read the FUSE file, or the data file of a complete
	// layer, with O_DIRECT, so that data is cached once, in the mount.
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
