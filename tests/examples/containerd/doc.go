// Command containerd is containerd with lazyerofs in it: its own builtins, and our
// snapshotter and differ as two plugins more. It takes the arguments and the
// configuration of containerd; deploy/containerd/in-process.toml is what it needs
// besides. Build it with the tags that a containerd is built with, such as
//
//	go build -tags 'no_btrfs no_devmapper no_zfs' -o /usr/local/bin/containerd ./tests/examples/containerd
//
// and give its unit a descriptor store
// (deploy/systemd/containerd.service.d/lazyerofs.conf), or start it with
// lazyerofsd --supervise -- containerd. Without a keeper of descriptors it runs too,
// and downloads layers.
//
// Known deadlocks: those of package plugin.
package main
