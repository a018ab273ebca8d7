// Package standalone runs the daemon that serves images mounted from the
// command line, where no containerd is.
//
// The command itself never serves a mount: what it started would die with it,
// and a fanotify group without its daemon reads as zeros. So the daemon is
// started under its own supervisor, in a session of its own, with a root of its
// own: a containerd's garbage collector would remove the snapshots it made.
//
// An ordinary user has an instance below his own directories (User), whose daemon
// serves whole images through FUSE.
//
// Known deadlock: the daemon must not run from, or log to, a directory in an
// image that it serves.
package standalone
