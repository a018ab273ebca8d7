// Package merge makes one EROFS image of metadata for all layers of an image: what
// overlayfs would show of them, with the layers' image data as devices.
//
// # Contract
//
// Of each layer only what the strict parser reads is fetched, unless the data is
// asked for. The same image gives the same bytes. A file appears whole or not at
// all.
//
// # Known deadlocks
//
// None. A source must not be on a lazy mount of this process.
package merge
