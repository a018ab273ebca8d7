// Package fusetree is the driver that shows a layer's files through FUSE, for
// kernels and users that may not mount EROFS. It is the last in the order: every
// miss of a name or of a page comes to this process.
//
// # Contract
//
// It serves an erofs.Image: metadata that the strict parser accepted, or that was
// written of what erofs.Merge made of the layers of an image (MountImage), so that
// an ordinary user needs no overlay. An inode is known to the kernel by its number
// on disk. So there is no object for an inode, no table, nothing to forget, and a
// successor that has the same metadata serves what its predecessor handed out. The
// connection outlives this process in the keeper's hands (package fusesession).
//
// No tree is held: names, attributes and places of data are read from the metadata
// when they are asked for, as the kernel's EROFS reads them, and from the same page
// cache. Metadata that is parsed and held takes 1.4 MB for 10,000 files, in each of
// a hundred layers. As with EROFS, the metadata must not change behind the check
// that was made before the mount. It can be written by whoever may write the files
// of the cache: this process, which writes to an image's metadata only before it is
// checked, and root. Should it change all the same, answers are wrong or errors.
// Metadata that the page cache has dropped is read from the disk by the loop that
// was asked for it: requests of the same mount may wait for that read.
//
// Names, attributes, symbolic links and listings hold for ever, absent names too:
// the kernel asks once. Files and directories are not opened here (ENOSYS, which
// it remembers). A single layer is shown as it is, whiteouts and overlayfs' marks
// included, for overlayfs to lie on it; an image is shown as overlayfs would.
//
// A read is answered when all its bytes are resident, whole or not at all: the
// kernel takes a short answer for the end of the file, and shortens it. An error
// is for one read. An interrupt does not end a read unless its reader is being
// killed.
//
// A layer that is complete when it is mounted is mounted by the kernel's EROFS
// where that can be, and then needs no daemon; one that becomes complete later
// stays on FUSE until its next mount. Where EROFS cannot be mounted, as by an
// ordinary user, it is always on FUSE.
//
// # Why not FUSE passthrough
//
// Passthrough (Linux 6.9) gives a file a backing file, and the kernel reads byte n
// of the one as byte n of the other: struct fuse_backing_map has a descriptor and
// no offset, fs/fuse/passthrough.c hands on ki_pos as it is. Files lie in the
// middle of a data file, so none could be read so, and a file at its very start
// would go on into the next one behind its end. It also takes CAP_SYS_ADMIN.
// TestPassthroughHasNoOffset shows it. What is resident is read from the data
// file's page cache instead, by fusesession's loops, without a goroutine.
//
// # Known deadlocks
//
// This process must not ask anything of what it has mounted: a thread that waits for
// its own process's answer cannot be killed, and a killed server that waits for itself
// never ends. Before a mount is shown a child looks at its root (package mountproc);
// afterwards the kernel knows the answer, so that looking for the mount waits for
// nobody.
package fusetree
