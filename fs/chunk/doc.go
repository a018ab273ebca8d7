// Package chunk is the vocabulary that all parts share: extents, chunks, the
// map from image data to stored bytes, and the codec of the chunk index and of
// the annotations that lead to it (draft EROFS image spec).
//
// The package is pure: no I/O, no goroutine, no lock, nothing of ours imported.
// What it parses comes from outside, so every parser checks lengths before it
// looks at contents and allocates nothing that a field asks for. A parsed Index
// is a view of the bytes it was given: 16 bytes and a digest per chunk, no Go
// object per entry. Nothing here can deadlock.
package chunk
