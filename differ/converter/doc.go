// Package converter turns whole images into lazily mountable ones.
//
// Image reads a manifest or an index from a registry, an OCI layout or an
// archive, converts each layer once with differ.Convert, rewrites config and
// manifest, and writes the result to a registry or a layout. Layers that are
// native EROFS already pass through unchanged; those that have no chunk index are made
// anew with one.
//
// # Contract
//
// Nothing that a source gives is believed without its digest: manifests,
// configs and layers are checked against the descriptor that names them, and
// each tar against the diff id that the config claims. The same image and
// options give the same digests. Layers are converted in parallel, a bounded
// number at a time; what is not finished waits in unnamed files, so that neither
// an error nor a crash leaves anything of it behind. A target gets blobs before
// manifests and its name last: an interrupted conversion never publishes half an
// image. With Options.KeepDir the next run goes on where it was: a layer is
// found there by its digest, the layers below it, the options and the build of
// this program, and its bytes are hashed before they are used.
//
// What speaks of the source cannot simply speak of the result. Attestations that
// BuildKit put into the index are bound to the new image, their statements are
// left as they are. Signatures, SBOMs and other referrers stay with the source;
// Result lists them. Annotations that describe the bytes of a source layer to
// some lazy loader are dropped, all others are kept.
//
// # Known deadlocks
//
// None. WorkDir and KeepDir must not be on a lazy layer.
package converter
