// Package plugin registers the snapshotter and the differ as plugins of a
// containerd that is built with it, both under the name "lazyerofs":
//
//	import (
//		_ "github.com/containerd/containerd/v2/cmd/containerd/builtins"
//		_ "github.com/lazyerofs/lazyerofs/cmd/plugin"
//	)
//
// tests/examples/containerd is such a containerd, deploy/containerd/in-process.toml
// its configuration. There is no lazyerofsd then; the process that answers the
// kernel is containerd itself.
//
// # Contract
//
// Configuration has the keys of deploy/config.toml, below
// [plugins.'io.containerd.snapshotter.v1.lazyerofs'] and
// [plugins.'io.containerd.differ.v1.lazyerofs']. A root that is not given is the
// plugin's own below containerd's. Metrics are among containerd's. Stream processors
// of containerd's configuration count.
//
// Layers are loaded lazily only when somebody keeps descriptors over the end of
// containerd: systemd's store, which containerd.service has to ask for, or
// lazyerofsd --supervise -- containerd. Otherwise they are downloaded. While
// containerd is away, reads of what is missing wait. docs/adr/0012-in-process.md has
// the reasons.
//
// A plugin that cannot start is skipped and says why: containerd and what it runs
// with other snapshotters go on.
//
// Importing the package takes what a predecessor left with the keeper, before main
// begins: descriptors have fixed numbers, and no file may be opened before.
//
// # Known deadlocks
//
// containerd reads files of containers, and so from mounts that it serves. With
// fanotify, the only driver here, another thread answers, and the reader can be
// killed. A mapping of such a file would be another matter: a thread that waits in a
// page fault stops the Go runtime, and with it the one that would answer. containerd
// maps none.
package plugin
