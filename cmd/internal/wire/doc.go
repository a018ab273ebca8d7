// Package wire puts the parts together: the lazy side (registry, cache, drivers),
// the snapshotter over it and the differ beside it. It is the one place that knows
// all of them. The daemon (cmd/lazyerofsd) and the plugins for a containerd that
// compiles them in (package plugin) say how they are configured, who keeps
// descriptors for them and who reaches them; the rest is the same and is here.
//
// # Contract
//
// Inherit comes before anything else in a process, New when the configuration is
// known, then Restore, which may take as long as it wants, and in the end End.
// Nothing needs a network to start, and no mount is touched at the end: what is
// missing waits for the next process, as long as somebody keeps the descriptors.
//
// # Known deadlocks
//
// A process must not read from a mount that it serves, and the daemon does not.
// containerd does: it looks up users and copies volumes in the files of
// containers. See Options.InProcess for what follows from that.
package wire
