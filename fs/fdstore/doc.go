// Package fdstore keeps descriptors outside this process, in systemd's file
// descriptor store or in our own supervisor (package keeper), which speak the
// same protocol: datagrams to $NOTIFY_SOCKET (sd_notify(3), sd_listen_fds(3)).
//
// A descriptor that was Put outlives the process, kill -9 included, and comes
// back to its successor through Inherited. Put returns only after the keeper
// has read the message (BARRIER=1), so what is marked or mounted after a Put is
// guarded from its first moment. The protocol has no reply: a keeper that is
// full drops descriptors silently, so Put counts and refuses beyond $FDSTORE, and
// refuses altogether where that is not set.
//
// Never call Fd on an inherited os.File: it makes the open file description
// blocking, for every process that shares it. Use SyscallConn.
//
// Deadlock: Put waits for the keeper. A keeper that reads from a lazy mount, or
// that runs a binary from one, may wait for us; ours does neither.
//
// The package imports nothing of ours.
package fdstore
