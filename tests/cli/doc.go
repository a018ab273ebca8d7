// Package cli runs the shipped command line against a real registry, a real
// daemon and the kernel, as a user without containerd would.
package cli
