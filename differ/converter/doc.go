// Package converter turns whole images into lazily mountable ones.
//
// Image reads a manifest or an index from a registry, an OCI layout or an
// archive, converts each layer once with differ.Convert, rewrites config and
// manifest, and writes the result to a registry or a layout. Layers that are
// native EROFS already pass through unchanged.
//
// # Contract
//
// Nothing that a source gives is believed without its digest: manifests,
// configs and layers are checked against the descriptor that names them, and
// each tar against the diff id that the config claims. The same image and
// options give the same digests. Layers are converted in parallel, a bounded
// number at a time; their blobs wait in unnamed files, so that neither an error
// nor a crash leaves anything behind. A target gets blobs before manifests and
// its name last: an interrupted conversion never publishes half an image.
//
// # Known deadlocks
//
// None. WorkDir must not be on a lazy layer.
package converter
