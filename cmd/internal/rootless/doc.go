// Package rootless mounts whole images for an ordinary user: the part of the
// daemon that does it, and the client that asks it to.
//
// They speak HTTP with JSON over the user's socket, because there is nobody else
// on either side: no containerd, and so no snapshots. A request names a directory
// and says of each layer what containerd would tell a snapshotter, in the same
// labels; the daemon opens the layers, merges their metadata and shows them in one
// FUSE mount (package fusetree).
//
//	POST   /v1/mounts                a Mount; answers when it is mounted
//	DELETE /v1/mounts?target=/dir    answers when nothing uses it any more
//	GET    /v1/mounts                all of them
//
// A failure is a Failure with status 4xx or 5xx. What is mounted is on record
// below the daemon's root before it is mounted, so that a successor of a daemon
// that was killed takes it over.
//
// Known deadlock: the daemon must not look into what it has mounted.
package rootless
