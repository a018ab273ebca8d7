// Package remote reads registry blobs in ranges.
//
// A [Resolver] turns sources (image reference times the hosts that certs.d
// gives for it) into a [Blob] without touching the network when size and
// digest are known. The sources times their hosts stay the fail-over list for
// as long as the blob is used. Decorators add retries, request planning,
// limits and figures; [Open] stacks them in the order that works.
//
// What a label says is attacker-controlled: a host is only ever derived from
// the image reference and the machine's own certs.d, never from a URL in a
// label or a descriptor. Bytes are not verified here, and never more than was
// asked for is handed on.
//
// Nothing here takes a lock while it does I/O, apart from calls to the
// registry configuration (local files and credential helpers). A credential helper or a
// certs.d directory that lies on a lazy mount served by this process would
// wait for itself; keep both on a local file system.
package remote
