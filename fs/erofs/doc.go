// Package erofs is our own EROFS: one entry model, a writer, a strict parser and
// mounting. A kernel is only ever shown metadata that this package wrote or that
// its parser accepted.
//
// # Model
//
// A Tree is a whole file system in flat arrays. A Builder makes one of entries
// that come in any order, as those of an archive do; the parser makes one of an
// image. Neither follows a symbolic link, and neither holds file data: a regular
// file has extents, which say where its bytes are.
//
// # Address spaces
//
// An Extent's address counts bytes on its device. Device 0 is the image itself,
// and before NewLayout its addresses count from the start of the data area,
// because where that is depends on the length of the metadata; WriteMeta adds
// MetaSize to them. Addresses on other devices are written as they are.
//
// # Images
//
// The first MetaSize bytes of an image are all of its metadata and nothing else:
// superblock and device table, inodes with their extended attributes, chunk maps
// and inline tails, shared attributes, directory blocks. File data follows,
// aligned to blocks, and none of it is inline. So a reader needs one contiguous
// range before it can mount, and chunks of data never hold metadata.
//
// Images are uncompressed and need Linux 5.16 when they have extra devices, 5.15
// with holes or split files. Regular files that are one run on device 0 are plain;
// all others have 8-byte chunk indexes, with chunks as large as their extents
// allow. Equal trees and options make equal bytes.
//
// # Known deadlocks
//
// A process that answers fanotify pre-content events of an image file must not
// read or write that file through a descriptor that raises them, and must not
// wait for a mount of it: from Linux 7.1 on the mount itself reads through the
// mark. Serve on another goroutine before mounting. Writing an image is done
// before there is a mark.
package erofs
