// Package vm runs tests of this module inside real kernels: `make vm`.
//
// A guest is a kernel of a Debian suite under qemu, without KVM, with a program
// of ours as its first process (package init): it loads modules, mounts an ext4
// data disk, runs test binaries from that disk one after the other and writes what
// they print, framed by lines of its own, to a second serial port.
// The host turns that into subtests. Only a guest that says that it is done has
// passed: one that panics, hangs or says nothing has failed, whatever qemu's exit
// code is.
//
// guests.go is the table: which kernel, and which packages' tests run in it. To run a
// package's tests in a guest, add its path there. A test that runs in a guest
// finds the commands of this module in bin below the module's root, its own
// testdata, /bin filled by busybox, fusermount3, the C library that all these are
// loaded with, a loopback interface, an ext4 temporary directory, and nothing else: no
// Go toolchain, no containerd, no registry but one that it starts. The host's loopback
// is 10.0.2.2.
//
// A guest with a Root has a Debian root file system as its disk instead. Our init
// loads modules, changes to it and becomes its systemd, which boots into a target of
// ours; a unit there starts our init again, which carries out the same plan with the
// same paths. See root.go; its tests are in package systemd.
//
// Nothing of a kernel is part of this repository. tests/tools/vm-kernel.sh brings
// one by the distribution's own packages into .cache/vm, once for each version, and
// tests/tools/vm-root.sh a root, once for each suite and version of the script; a later
// run downloads nothing, VM_UPDATE=1 looks for newer ones.
//
// Everything is slow here: a guest needs seconds to boot and ten times as long as
// the host for work of the processor. Time-outs are there to end what hangs.
package vm
