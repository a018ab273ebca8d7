// Package kernel finds out what the running kernel can do, by doing it.
//
// Versions are never compared: distributions switch features off, and vendors
// port them back. Each probe performs the whole operation once, on the file
// system that will hold the data, and answers in one of three ways:
//
//   - nil: it was done here, just now;
//   - an error that wraps ErrNotSupported: the kernel, its configuration, the
//     file system or our privileges rule it out, and asking again without
//     changing one of these gives the same answer, so it may be cached;
//   - any other error: the probe itself failed (no space, no descriptors, the
//     device is busy). It says nothing about the kernel and must not be cached.
//
// The text of an error names the refused step, the errno and what to do.
//
// Nothing that a probe makes outlives it: mounts are detached ones that vanish
// with their descriptor, files live in one temporary directory inside the
// cache directory.
//
// FSContext, the fsopen(2) family with the kernel's own error text, is here
// because both the probes and package erofs mount with it.
//
// Known deadlocks: a pre-content event blocks its reader until someone answers.
// HavePreContent reads in a goroutine of its own and closes the group on every
// path, which releases the reader, before it waits for it.
package kernel
