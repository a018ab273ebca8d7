// Package fs mounts layers: it joins a format, a registry blob, a data file and a
// driver into one mount, for as many targets as ask for the same layer.
//
// # Contract
//
// One layer object serves all mounts of a blob. It is opened from what an earlier
// process recorded when there is such a record, which takes no network, and it
// stays open until no superblock holds it, not merely until its last target is
// unmounted: overlayfs keeps superblocks alive.
//
// What identifies a layer's content is the digest of its blob together with that
// of its chunk index and of its whole image. A blob's name alone is not enough:
// the ranges that are read are checked against the index, and the index against
// the manifest of the image that is being pulled. So an image that brings another
// index for the same blob does not share the layer; it is a miss.
//
// containerd files a layer under the diff ids that an image claims. A raw layer
// must therefore be called by the digest of its blob, and a compressed one by
// the digest that the complete layer is checked against.
//
// A layer that turns out to be wrong, or that was mounted while nobody guarded
// it, is quarantined: no new mount of it is made, and the log names it. Mounts
// that exist stay, because taking them away breaks containers that may never
// read what is wrong.
//
// # Known deadlocks
//
// The process that runs this package must never read from a target: it would wait
// for itself.
package fs
