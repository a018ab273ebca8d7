// Package fuseblock is the driver for kernels without pre-content events: a
// layer's data is one file of a FUSE connection, and the kernel mounts EROFS
// from that file, or from a loop device on it before Linux 6.12.
//
// Each mount has a connection of its own, so that one layer's trouble is not
// another's. The FUSE mount is never attached anywhere: the kernel opens the
// file, the mount is given up, and from then on the EROFS superblock holds the
// connection. The superblock is made by a child (package mountproc), because
// making it reads the file; this process attaches the mount. It ends when the superblock does, wherever that was held (overlay,
// open files, other mount namespaces), and so nothing needs to be looked for.
//
// It fails closed: without a server reads wait, without a keeper they fail; no
// hole is ever read. Connections outlive their server as package fusesession
// says, and a successor finds them by SessionName; of several, the newest is what is
// mounted there, the others are closed mounts with readers. Readers of a connection that
// is not adopted yet wait, until Settle. Writers need not be inherited: a
// successor opens data files as it likes.
//
// Resident ranges are answered from the page cache of the data file, without
// lock, allocation or copy of state. Passthrough is off on these connections, or
// EROFS would refuse the file (its superblock would count as stacked).
//
// A complete layer is mounted straight from its data file, and survives this
// process. One that becomes complete while it is mounted stays on its connection
// until its next mount. The metadata image of a layer that has one is local and
// is never behind FUSE.
//
// An EROFS reader that is killed while its range is fetched goes away: the
// kernel interrupts its request, and we look whether it is dying. Other signals
// change nothing.
//
// Known deadlocks: this process must not read from a mount that it serves, in any
// way. A thread that waits for its own process's answer cannot be killed, so that a
// killed server never ends and nobody takes its place; see package mountproc. The
// same for a keeper of descriptors.
package fuseblock
