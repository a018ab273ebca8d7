// Package format turns layer blobs into plans.
//
// A Format knows one encoding of a layer: where its index is, what a stored
// chunk looks like, which digest holds it. It does no I/O but reads of the Blob
// it is given, opens no file and starts no goroutine; a Plan is immutable and
// safe for concurrent use. What a Format reads in Open can be recorded (Record)
// and played back (Replay), so that a layer is reopened without a network and
// still passes every check again.
//
// Everything a Format reads comes from outside. Two errors have a meaning for
// callers: ErrNotLazy (download the layer the ordinary way) and
// *chunk.CorruptError (the layer contradicts its own digests). Nothing here
// takes a lock, so nothing here can deadlock; a Decode may wait for a free
// decoder, which another Decode gives back without waiting for anything.
package format
