// Package fsverity turns on fs-verity for files and asks about it: the kernel then
// holds every page that it reads of the file against a hash tree of its own, and
// nobody can write to the file any more (Documentation/filesystems/fsverity.rst).
//
// # Contract
//
// A file is sealed for good; only its removal ends it. Sealing takes an open
// descriptor for reading, and that nobody has the file open for writing. What is
// mounted from the file, or has it open for reading, goes on and is checked from
// then on. The digest of a sealed file names its content and nothing of its place,
// so that it can be recorded and compared.
//
// # Known deadlocks
//
// Sealing reads the whole file. A file whose missing ranges this process fills on
// demand must be whole before.
package fsverity
