// Package testenv holds the real surroundings that tests, the demo and the
// benches run in: a containerd of their own, a registry in this process, a
// shaped link in front of it, our daemon, and real images made on this machine.
//
// Nothing here touches what the machine already runs: every part has its own
// directory, socket and namespace below a directory that the caller gives, and
// listens on loopback only. Whoever starts a part stops it; Stop ends processes
// by the ids it started or that carry its directory in their command line, and
// unmounts only below that directory. Stop may be called twice.
//
// Known deadlock: stopping our daemon before the containers that read through
// it leaves their reads waiting. Stop Containerd first, Daemon second, the
// Registry last.
package testenv
