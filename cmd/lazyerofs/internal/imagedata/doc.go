// Package imagedata opens the layers of an image, wherever that is, for commands
// that read them without mounting: blobs in ranges, and the image data in them,
// verified chunk by chunk.
//
// # Contract
//
// What a Reader returns was checked against the digest in the chunk index, which
// was checked against the layer's descriptor. Nothing is kept on disk, except a
// layer that has no chunk index, which is unpacked into an unnamed file. Memory is
// bounded whatever the chunk size of the image.
//
// # Known deadlocks
//
// None. A source must not be on a lazy mount of this process.
package imagedata
