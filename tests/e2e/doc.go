// Package e2e runs our daemon under a real containerd, with a real registry and
// real containers. It holds only tests.
//
// Known deadlock: see package testenv. Containers end before the daemon does.
package e2e
