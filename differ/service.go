package differ

import (
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/leases"
)

// ServiceConfig says how a Differ works. The zero value applies layers and
// compares nothing.
type ServiceConfig struct {
	// Snapshots is the directory of the snapshotter's snapshots, an absolute path:
	// Compare takes upper directories <Snapshots>/<id>/fs and leaves others to
	// containerd. Empty leaves all of them. Layers are mounted at <dir>/<id> with any
	// dir beside it; of those with a file <Snapshots>/<id>/layer.erofs, Apply takes
	// the attributes of directories that a tar does not give.
	Snapshots string
	// Leases keeps what Compare wrote from containerd's garbage collection until
	// the caller refers to it, for an hour: the lease of the caller does not reach a
	// differ outside of containerd. nil makes none.
	Leases leases.Manager
	// MediaType is that of a comparison for which the caller asks for none. Empty
	// means chunk.MediaTypeLayerZstd.
	MediaType string
	// Processors turn streams of one media type into another, such as encrypted
	// layers into plain ones; the first that takes a type gets it, also one that
	// could be applied as it is. diff.BinaryHandler makes one that runs a program.
	Processors []diff.Handler
	// Layer says how native layers are written; its Form is not looked at, nor are
	// First and Implied. With Verity, what Apply writes has a hash tree too, and a
	// dmverity.Sidecar that says so.
	Layer Config
}

// leaseTime is how long an unused result of Compare stays.
const leaseTime = time.Hour

// Differ is containerd's diff service for snapshots of EROFS layers. It
// implements diff.Applier and diff.Comparer and is safe for concurrent use.
type Differ struct {
	store content.Store
	cfg   ServiceConfig
}

var (
	_ diff.Applier  = (*Differ)(nil)
	_ diff.Comparer = (*Differ)(nil)
)

// New returns a Differ that reads layers from store and writes them there.
func New(store content.Store, cfg ServiceConfig) *Differ {
	return &Differ{store: store, cfg: cfg}
}
