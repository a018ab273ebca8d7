// Package snapshot is containerd's view of lazyerofs: a snapshots.Snapshotter
// that answers a layer at once when a Filesystem can mount it lazily, and hands
// out an ordinary writable directory when it cannot. It knows labels, names and
// directories, and no EROFS.
//
// # Hits and misses
//
// A Prepare that carries the label containerd.io/snapshot.ref asks for a layer by
// its chain id. A hit mounts the layer, commits it under that very name and
// returns ErrAlreadyExists, on which containerd neither fetches nor unpacks. A
// miss is a writable snapshot: containerd fetches the layer and the differ fills
// it. A miss is never a failed pull (unless the option Strict asks for it).
//
// Hits form a prefix of an image, because a miss makes containerd fetch every
// layer above it too. A parent that was unpacked for the manifest being pulled is
// such a miss; one that was here before, from another image, is not: nothing is
// being fetched on its account.
//
// # On disk
//
//	metadata.db                containerd's snapshot meta store: names, parents, labels
//	snapshots/<id>/fs, work    upper and work directory of overlayfs
//	snapshots/<id>/.erofslayer MarkerFile: the differ may write LayerFileName beside it
//	snapshots/<id>/layer.erofs LayerFileName: the unpacked layer as an EROFS image
//	l/<id>                     mount point of a layer, lazy or unpacked; short on
//	                           purpose, 128 of them must fit one page of options
//
// What kind of layer a committed snapshot is stands in a label (LabelLayer) that
// is written in the transaction of the commit and never changes, so a snapshot
// has the same mount options for as long as it lives: overlayfs answers ESTALE
// when lower directories change under it.
//
// # Time and locks
//
// containerd calls without a deadline and holds a per-snapshotter lock over
// Prepare, and a write transaction of its whole metadata over Commit and Update.
// So Prepare has a limit of our own, after which it is a miss, and Commit, Remove,
// Stat, Update and Walk touch only local state. Deletion and unmounting are
// Cleanup's work, which containerd calls without its lock.
//
// Locks are taken in the order target name, snapshot id; neither is held inside a
// transaction of the meta store, and no transaction is held over a mount. The
// known deadlock: a Filesystem must not call back into the Snapshotter.
package snapshot
