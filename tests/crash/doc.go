// Package crash tests what holds when the daemon goes away under readers: a
// supervisor, a daemon that serves a layer, and readers, in processes of their
// own, with the real descriptor store between them.
package crash
