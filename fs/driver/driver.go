package driver

import (
	"context"
	"os"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// Layer is what a driver needs of a layer. fs/layer implements it; the
// interface lives here so that drivers never import that package. The dynamic
// type is a pointer: drivers compare layers for identity.
type Layer interface {
	// ID names the layer in logs and in the descriptor store: 1 to 100 characters
	// of [a-z0-9-], stable across restarts.
	ID() string
	// Meta is the local EROFS image that has Data as its device 1, or nil when
	// Data is itself the primary device.
	Meta() *os.File
	// Data is the writer's descriptor of the data file, as long as the image
	// data. All I/O of this process on a marked file goes through it (K2).
	Data() *os.File
	// Resident reports whether image data [off, off+n) is in Data. No lock, no
	// allocation: the drivers call it for every event.
	Resident(off, n int64) bool
	// Ensure makes image data [off, off+n) present and verified in Data.
	Ensure(ctx context.Context, off, n int64) error
	// ReadAt reads image data, fetching what is missing.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	// Complete is closed once every byte is in Data and verified.
	Complete() <-chan struct{}
}

// Treed is a Layer whose image data may end in a dm-verity hash tree.
type Treed interface {
	Layer
	// Verity describes the tree; nil when there is none.
	Verity() *chunk.Verity
}

// Verity describes the hash tree with which l's image data ends; nil when there is
// none.
func Verity(l Layer) *chunk.Verity {
	if t, ok := l.(Treed); ok {
		return t.Verity()
	}
	return nil
}

// ImageSize is the length of the EROFS image in l's size bytes of image data: all of
// it, or what precedes a hash tree.
func ImageSize(l Layer, size int64) int64 {
	if v := Verity(l); v != nil {
		return v.HashOffset
	}
	return size
}

// Driver makes kernel reads of missing ranges reach us.
type Driver interface {
	// Name is short and stable; it goes into config, logs and persisted state.
	Name() string
	// Probe reports whether the driver works here, by doing: nil, an error that
	// wraps kernel.ErrNotSupported, or an inconclusive error that is not cached.
	// cacheDir is the directory of the data files; the answer depends on it.
	Probe(cacheDir string) error
	// Mount mounts the layer read-only at target, an existing empty directory.
	// Every range of metadata is resident before the call.
	Mount(ctx context.Context, target string, l Layer) (Mount, error)
	// Adopt takes over a mount at target that a predecessor of this process made
	// for the same layer, without touching the mount.
	Adopt(ctx context.Context, target string, l Layer) (Mount, error)
}

// Keeper keeps descriptors for a successor of this process (package fdstore).
type Keeper interface {
	// Put returns when the keeper has its copy.
	Put(name string, f *os.File) error
	// Remove drops what is kept under name; a name that is not kept is no error.
	Remove(name string) error
}

// Inheritance is what a predecessor of this process left with the Keeper, by
// name, as fdstore.Inherited returns it. Each driver has names of its own.
type Inheritance map[string][]*os.File

// Stats counts what a driver did in this process.
type Stats struct {
	// Hits are reads of ranges that were resident, Misses those that were filled.
	Hits, Misses uint64
	// Denied are reads that were answered with an error.
	Denied uint64
	// Served is the number of layers whose reads reach this process now.
	Served int
}

// Server is a Driver that answers the kernel from this process, and therefore
// has a successor and a planned end.
type Server interface {
	Driver
	// Settle says that no more adoptions come. Reads of mounts that nobody
	// adopted fail from now on; it returns the IDs of their layers.
	Settle() ([]string, error)
	// Shutdown stops taking reads, finishes those that were taken and leaves
	// every mount to a successor, for which later readers wait. When ctx ends
	// first, the reads in progress fail.
	Shutdown(ctx context.Context) error
	// Stats returns the counters. It may be called at any time, also after
	// Shutdown.
	Stats() Stats
}

// Mount is one mounted layer.
type Mount interface {
	// Target is the mount point.
	Target() string
	// Close unmounts the target and lets go of what serves it as soon as no
	// superblock holds the layer any more.
	Close(ctx context.Context) error
	// Done is closed once nothing serves the mount any more: after Close, when
	// the last superblock that holds the layer is gone (overlayfs and open files
	// keep one long after the unmount). Until then the Layer must stay usable
	// and its data file must not be evicted.
	Done() <-chan struct{}
	// Release stops nothing and unmounts nothing: it frees this process's share
	// so that a successor can adopt the mount.
	Release() error
}
