// Package fusesession is a FUSE connection that outlives the process that
// serves it. Drivers put a file system on it (fuse.RawFileSystem) and get a
// mount whose readers wait, and then read the right bytes, when the server is
// killed and another one takes its place.
//
// go-fuse, unmodified, turns requests into calls and results into answers
// (fuse.ProtocolServer). Taking requests and writing answers is here, because
// both must survive us:
//
//   - /dev/fuse and a memfd with what was negotiated are with the Keeper before
//     the file system can be reached. The kernel ends a connection with its last
//     descriptor; until then requests queue and their readers wait.
//   - read(2) puts each request straight into a slot of a journal in that memfd,
//     and the slot is emptied after the answer was written. So at any instant
//     the journal has every request that was taken and is unanswered.
//   - A successor brings go-fuse into its predecessor's state by a FUSE_INIT
//     like the one that started the connection, then has the kernel send again
//     what was taken (FUSE_NOTIFY_RESEND, Linux 6.9 and newer, by what the
//     connection negotiated), or else answers the journal. An answer that comes
//     twice is refused by the kernel (ENOENT), which is normal.
//   - Shutdown wakes the loops through the runtime's poller, takes nothing more
//     and finishes the rest; no thread stays in read(2) to steal a request from
//     a successor, even in the same process.
//
// What it asks of a file system: node ids mean the same to every server. File
// handles too, so best have none: answer OPEN with ENOSYS, or with handle 0; the
// same for FLUSH, or close(2) waits for a server. An errno is for one request:
// what failed may be asked again. A request ends when it can: Session.Context
// says when it must. The kernel sends INTERRUPT for every signal to a reader,
// also for those that are no reason to fail (Go's own, for one); answering EINTR
// makes the read fail, so see Dying.
//
// Known deadlocks: this process must not touch the file system. A reader whose
// request was taken cannot be killed before it is answered; if it is a thread of
// the server's own, the server, once killed, waits for itself, and no successor is
// started because it never ends. What must be asked at the start is asked by a
// child (package mountproc). Files that are opened by os.Open go into the runtime's
// poller, which asks the file system for POLL; Mount makes the kernel ask once and
// never again, except on a mount without target. The keeper of descriptors must
// never touch it either. Abort frees every reader.
package fusesession
