// Package verify checks a whole image against its digests and the strict parser,
// end to end: every document, every blob, every chunk.
//
// # Contract
//
// Run reads every byte of the image once, and the metadata of native layers once
// more, through ranges, as a mount would. What contradicts a digest, a size or a
// rule of the parser is a Fault; the check goes on behind it, so that one run
// finds all. An error is about a source that did not answer. Memory is bounded by
// the largest chunk and the metadata of a layer, times Config.Parallel.
//
// # Known deadlocks
//
// None. The source must not be on a lazy mount of this process.
package verify
