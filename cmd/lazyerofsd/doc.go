// Command lazyerofsd is the daemon: a containerd snapshotter and differ on one
// socket, and behind them what loads layers lazily.
//
// Package cmd/internal/wire puts the parts together. The order at start is: take over
// the descriptors that a predecessor left, open the socket, say that we are ready,
// then take over mounts; nothing in it needs a network. At stop every mount stays,
// and what serves them waits in the descriptor store.
//
// With --supervise it is the parent that keeps those descriptors, of a daemon with
// the same arguments, or of another program that has lazyerofs in it (package
// plugin).
//
// With --rootless it is the daemon of an ordinary user instead: rootless.go puts the
// same lazy side together with one FUSE mount for each image, and answers
// "lazyerofs mount" (package cmd/internal/rootless) in place of containerd.
//
// Known deadlock: the daemon must not read from a mount that it serves. Its
// binary, its configuration, certificates and resolver files must not be on one.
package main
