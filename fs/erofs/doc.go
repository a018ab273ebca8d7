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
// # Merging
//
// Merge makes one Tree of a stack of layers: what overlayfs shows of them, with
// the data of layer k on device k+1. It is written like any other, with those
// devices in WriteOptions. Images of whole stacks then need one mount.
//
// # What the parser refuses
//
// There is one profile, and what our writer writes passes it. Refused are: all
// compression, fragments, 48-bit addresses, metadata boxes, long attribute
// prefixes and page-sharing fingerprints (so every feature but chunks, devices,
// checksum, mtime and the attribute filter); a missing or wrong checksum; inline
// tails of regular files; link counts, types, orders and numbers of inodes that do
// not agree; structures in each other's place; file data in metadata, outside its
// device, or on a device by its flat address; compact inodes with times of their
// own; trusted attributes other than the two marks of CheckXattr, and malformed
// access control lists; bytes that are reserved and not zero.
//
// Files may share blocks of data, whole or in part: the blocks are verified, and
// reading one through two files tells nobody more than through one. Nothing looks
// into bytes of the metadata region that no structure claims.
//
// Images of mkfs.erofs pass when it is told -Enoinline_data (-E^inline_data in
// newer versions) and no compression, with or without --chunksize, -T or
// --tar=f; 1.5 and 1.8.6 were tried. Their metadata is in many places, not in one.
// One that announces LZ4_0PADDING (feature bit 1) is refused for it, even without
// a compressed file.
//
// # Known deadlocks
//
// A process that answers fanotify pre-content events of an image file must not
// read or write that file through a descriptor that raises them, and must not
// wait for a mount of it: from Linux 7.1 on the mount itself reads through the
// mark. Serve on another goroutine before mounting. Writing an image is done
// before there is a mark.
package erofs
