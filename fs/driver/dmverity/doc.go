// Package dmverity mounts complete layers that end in a hash tree through
// dm-verity: the kernel checks every block that it reads of the data file, for as
// long as the mount lasts.
//
// # Contract
//
// It is a driver.Driver for layers that are complete and no others (ErrNotForIt), to
// be tried before those that serve missing ranges; a layer whose mount another
// driver made stays with that one. The device goes away with the last superblock on
// it, without this process: there is nothing to serve, to keep or to recover, and a
// mount is adopted by looking at it.
//
// # Known deadlocks
//
// None: no read of such a mount reaches this process. That is why incomplete layers
// are refused: behind the loop device that device mapper wants, a data file raises
// no fanotify events.
package dmverity
