// Package mounts mounts an image at a directory through a snapshotter, without
// containerd.
//
// It speaks to the snapshotter as containerd's unpacker does: one Prepare for
// each layer with the labels of a remote snapshot, then a view of the top
// layer. So the command line and containerd take the same road to a lazy layer,
// and the daemon knows only one protocol.
//
// The snapshotter must not be one that a containerd uses: containerd's garbage
// collector removes every snapshot that it does not know.
package mounts
