// Package drivertest holds the laws that every driver keeps, as a test suite
// over driver.Driver: Run. It compares trees that the kernel shows with trees
// that it built, and never looks into a driver.
//
// The layers are fakes only in where their bytes come from: the images are real
// EROFS images, in one file or with a device of their own, the data files are
// sparse, and the kernel mounts them.
//
// A test binary that uses the suite calls Main from TestMain, because pages are
// faulted in and programs executed by child processes: a page fault or a fork
// that waits for a driver in the same process holds a processor of the Go
// runtime, and a garbage collection that waits for that one stops the driver.
//
// The laws need root, /bin/sh and /bin/echo, and a file system for temporary
// files from which the driver can serve; a binary made by
// "CGO_ENABLED=0 go test -c" needs nothing else, as in a virtual machine.
package drivertest
