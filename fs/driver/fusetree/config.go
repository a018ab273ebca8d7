package fusetree

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/fusesession"
)

// Name is the driver's name in configuration and state.
const Name = "fusetree"

// Errors that callers branch on.
var (
	// ErrShutdown reports a call after Shutdown.
	ErrShutdown = errors.New("the fusetree driver is shut down")
	// ErrNotInherited reports the adoption of a mount whose connection no keeper
	// kept. It is dead: who reads it gets ENOTCONN.
	ErrNotInherited = errors.New("nobody kept the connection of this mount, it is dead: unmount it")
)

// namePrefix begins the names of kept connections.
const namePrefix = "fusetree-"

// imageID stands in the name of a kept connection for the layers of an image.
const imageID = "image"

// Config is what New needs.
type Config struct {
	// Keeper guards the connections against the end of this process. Required:
	// without it the death of this process ends every mount.
	Keeper driver.Keeper
	// Inherited holds what a predecessor kept. The driver takes what is its own.
	Inherited driver.Inheritance
	// ReadAheadKB is the read-ahead of the mounts in KiB; 0 leaves the kernel's,
	// 128. Setting it takes root.
	ReadAheadKB int
	// Private mounts for the mounting user alone and leaves modes and owners to
	// look at: that user reads every file. Otherwise everybody sees a mount and the
	// kernel checks modes, owners and access control lists. Only root and users to
	// whom /etc/fuse.conf grants user_allow_other may do that.
	Private bool
}

var _ driver.Server = (*Driver)(nil)

// sessionName is the place, as fusesession.NewName wants it, of the connections of
// a layer's mounts at target. It says which layer it is of, because nobody else can when it is left
// over.
func sessionName(target, layerID string) string {
	sum := sha256.Sum256([]byte(target))
	return namePrefix + hex.EncodeToString(sum[:hashBytes]) + "-" + layerID
}

const hashBytes = 12

// sessionsIn returns the names of the connections among inherited with the IDs
// of their layers, "" for those of images.
func sessionsIn(inherited driver.Inheritance) map[string]string {
	found := map[string]string{}
	for name := range inherited {
		place, ok := fusesession.PlaceOf(name)
		rest, ours := strings.CutPrefix(place, namePrefix)
		if !ok || !ours || len(rest) <= 2*hashBytes || len(inherited[fusesession.StateName(name)]) == 0 {
			continue
		}
		id := rest[2*hashBytes+1:]
		if id == imageID {
			id = ""
		}
		found[name] = id
	}
	return found
}
