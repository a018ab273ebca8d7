// Package zstdseek reads native EROFS layers that are stored as one zstd frame
// per chunk with the chunk index in a trailing skippable frame
// (application/vnd.erofs.layer.v1+zstd and the draft's name for it).
//
// A stored chunk is trusted only after its digest was checked; after that its
// author may still lie, so the decoder is given exactly the room that the index
// promises and the frame must fill it.
//
// The decoder is shared by all layers and runs as many decodes at once as there
// are processors. Nothing here can deadlock.
package zstdseek
