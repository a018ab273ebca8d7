// Package keeper is the tiny parent behind lazyerofsd --supervise: it keeps the
// descriptors that its child stored and starts the child again when it dies.
//
// It exists because fanotify fails open: when the last descriptor of a group
// closes, reads of holes return zeros. Where systemd's store cannot be relied
// on (no systemd; before 254 the store is dropped on stop and on failure), this
// process is the one that must not die. So it does nothing else: it answers
// datagrams, it forks, it waits.
//
// Signals. SIGTERM and SIGINT stop the child; then the keeper exits if and only
// if nothing is stored. The child says so by what it keeps: the fanotify driver
// stores the group and a writer for each layer that is mounted and incomplete,
// and removes them when the layer is complete or no superblock holds it, so an
// empty store means that no read can find a hole. Otherwise the keeper stays
// without a child: readers of missing ranges wait, killable, instead of seeing
// zeros. SIGHUP and SIGUSR2 start the binary that is on disk now in place of
// the running child, or end such a wait: that is the upgrade.
//
// A child that exits by itself before it was ever ready, with nothing stored,
// ends the keeper with an error: that is a mistake in the configuration, which
// a restart does not mend. Every other death is answered by a restart: at once if
// the child was ready, since readers wait for the next one, otherwise after a
// delay that grows.
//
// Deadlocks: the keeper must never read from a lazy mount, so its binary and
// its working directory must not be on one. It opens nothing after its start
// but the child's binary.
package keeper
