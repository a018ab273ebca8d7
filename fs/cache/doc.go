// Package cache keeps the image data of layers that has arrived: a sparse data
// file per layer, a bitmap that says which chunks of it are there, and the
// little that is needed to open the layer again without a network.
//
// # Contract
//
// The bitmap, never SEEK_HOLE, says what is resident. In memory a chunk's bit is
// set after all its bytes were written; on disk a bit appears only after its
// data was synced (fdatasync of the data, then write and fdatasync of the bits
// that were set before the first of the two). Losing power therefore loses
// bits, never data under a bit. Bits are kept in two slots written in turn, each
// with a checksum and with the identity of the exact data file and chunk map, so
// a torn, old or foreign bitmap is discarded and its chunks are fetched again.
//
// If the kernel reports that written data did not reach the disk, every chunk
// since the last good sync is forgotten and fetched again: after such an error
// the page cache may no longer hold what was written.
//
// A data file that is complete can be sealed with fs-verity. What the kernel reads of
// it from then on, through whatever mount, is checked; nobody can write to it, this
// package included; and its digest is kept beside it. A file that is not the one
// that was sealed, or that is sealed without being complete, is replaced by an empty
// one. Residency is still the bitmap's to say.
//
// A hole is never punched. A layer goes away as a whole (Store.Remove).
//
// # Known deadlocks
//
// A process that opens a data file after the file was marked for fanotify
// pre-content events waits for itself on the first read or write. So a File does
// all its I/O through one descriptor: the one it was given in Options.Writer, or
// else the one it opened, which must then come before the mark. Nothing else in
// this package opens a data file, except Seal, which is for
// files that are marked no more.
//
// Resident takes no lock and is safe to call from an event loop that everything
// else waits for. WriteChunk and Flush may wait for the disk.
package cache
