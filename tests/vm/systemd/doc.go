// Package systemd tries the units of deploy/systemd, as they are, under a running
// systemd inside a guest: an image is mounted lazily through the service's socket
// over a slow line, and every byte of it is compared while the service is killed,
// restarted, stopped and started by its socket. What systemd holds in its
// descriptor store is asked of systemd.
//
// Its tests need the build tag guest. They run in the order of the files, and each
// leaves no unit of ours running.
//
// Known deadlock: a reader waits for the daemon, so nothing here may wait for a
// reader while the daemon is stopped.
package systemd
