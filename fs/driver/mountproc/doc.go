// Package mountproc makes mounts in a process of its own, for drivers whose
// kernel side asks this process while it mounts.
//
// A thread whose FUSE request was taken, or whose cachefiles request was sent,
// waits for the answer and cannot be killed (request_wait_answer in fs/fuse/dev.c,
// cachefiles_ondemand_send_req). If that thread is one of the server's own, and
// the server is killed, it waits for its own process: the process never ends, so
// its descriptors are never closed and nobody can reap it, so no successor is
// started that could answer. The only way out is to abort the connection by hand,
// and until then umount(8), sync(2) and the like hang all over the machine.
//
// So what makes the kernel read from a served file, or ask about a served tree, is
// done by a short-lived child: this program again (/proc/self/exe) under the name
// Program. It is given nothing but the descriptors of what it mounts, above all no
// /dev/fuse and no /dev/cachefiles. It makes the superblock, and a mount that is
// attached nowhere, and sends the mount's descriptor back; the parent attaches it,
// which reads nothing.
//
// When the parent dies meanwhile, the child waits until a successor answers with
// an error, or until the last descriptor of the connection is closed. Then its
// message finds nobody, and with its descriptors the mount, the superblock, a loop
// device (they clear themselves) and the hold on the connection are gone.
//
// The child needs no word in any main function: it is found out in this package's
// initialisation, so that a program or a test binary that links a driver can be
// the child, and none is ever run twice by mistake.
//
// A child ends when what it waits for ends, which the parent answers. The parent
// that wants to give up aborts what the child waits on (Order.Abort); to kill the
// child would be of no use. At most maxChildren run at once; others wait.
package mountproc
