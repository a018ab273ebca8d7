// Package fanotify is the driver for Linux 6.14 and newer: a layer is a kernel
// EROFS mount of a sparse data file, and pre-content events (FAN_PRE_ACCESS)
// ask us for the ranges that are missing before the kernel reads them.
//
// One group serves every mount of the process. Its rules:
//
//   - Order by type: the data file is marked, and the group and a writer are
//     with the Keeper, before the mount exists. The kernel decides when it opens
//     the data file whether that open file raises events, so the mount opens it
//     by path after the mark; a descriptor from before the mark (Layer.Data)
//     raises none, and all our I/O goes through it.
//   - Fanotify fails open: when the last descriptor of the group closes, reads
//     of holes return zeros and the page cache keeps them. So nothing is mounted
//     unless a Keeper holds the group, and the group is dropped only when no
//     data file is marked any more.
//   - Every event that was taken is answered exactly once, with FAN_DENY on
//     error or doubt: an event of an unknown file, without a range, or after an
//     overflow is denied. A denied reader gets EIO and may ask again.
//   - The kernel writes each event straight into a slot of the journal, shared
//     memory that the Keeper holds beside the group, and the slot is cleared
//     after the answer and before the event's descriptor is closed. So a
//     successor knows what this process took and did not answer, whenever it
//     dies.
//   - An event comes for every read that misses the page cache, also when the
//     data is there. That path takes no lock and allocates nothing.
//   - The mark of a complete layer is removed, and complete layers are mounted
//     without one.
//
// A successor finds the group, the journal and the writers among its inherited
// descriptors. From New on it serves; an event of a layer that is not adopted yet
// waits for Adopt, until Settle says that no more adoptions come. Between the
// predecessor and New, events queue in the kernel and their readers wait,
// killable.
//
// What the journal holds is answered in the predecessor's name. The kernel
// matches an answer to the oldest event of a descriptor number, so Reserve
// occupies the numbers of all such events before the group is read, each until
// its events are answered; and all ranges of one number are filled before the
// first answer under it. An answer for which there is no event any more (the
// predecessor died between the answer and the clearing) is ENOENT and means
// nothing. A process that dies during recovery leaves to the next one what it
// inherited and what it took. Where it died before it could note the file of an
// event, the range is filled in every layer that was guarded.
//
// Deadlocks: this process must never read from a mount that it serves, nor
// write, truncate or read a marked data file through a descriptor that was
// opened after the mark: the event would wait for this very process. When
// Config.MaxInFlight fills are running, the reader loops wait for one of them,
// so a fill must end by itself; a Layer bounds its retries.
package fanotify
