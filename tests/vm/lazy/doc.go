// Package lazy mounts an image lazily inside a guest, with the commands as they
// ship: a registry, a converted image of several layers, `lazyerofs mount`, and the
// supervised daemon, which chooses its driver itself. Every byte is compared while
// the daemon is killed.
//
// Its tests need the build tag guest.
package lazy

// Env names the driver that the daemon must choose in the guest.
const Env = "VM_DRIVER"
