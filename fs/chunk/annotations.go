package chunk

// Media types of native EROFS layers. Ours are the ones that containerd 2.4
// mounts; the draft's are read, never written.
const (
	MediaTypeLayer          = "application/vnd.erofs.layer.v1"
	MediaTypeLayerZstd      = "application/vnd.erofs.layer.v1+zstd"
	MediaTypeDraftLayer     = "application/vnd.erofs"
	MediaTypeDraftLayerZstd = "application/vnd.erofs+zstd"
)

// IsNative reports whether layers of this media type are EROFS images, ours or
// the draft's, compressed or not.
func IsNative(mediaType string) bool {
	return mediaType == MediaTypeLayer || mediaType == MediaTypeDraftLayer || IsNativeZstd(mediaType)
}

// IsNativeZstd reports whether layers of this media type are EROFS images in zstd
// frames.
func IsNativeZstd(mediaType string) bool {
	return mediaType == MediaTypeLayerZstd || mediaType == MediaTypeDraftLayerZstd
}

// Annotations on a layer descriptor (draft EROFS image spec).
const (
	// AnnotationIndexRange is "offset:end" of the chunk index section in the blob.
	// For zstd it starts at the skippable frame's magic, for raw at the header.
	AnnotationIndexRange = "org.erofs.chunk-index.range"
	// AnnotationIndexDigest is the digest of index header and entries, without
	// the skippable frame's own header.
	AnnotationIndexDigest = "org.erofs.chunk-index.digest"
	// AnnotationUncompressedDigest is the digest of the image data of a +zstd layer.
	AnnotationUncompressedDigest = "org.erofs.uncompressed-digest"
)

// SnapshotPrefix starts the keys under which the same facts are repeated,
// because containerd hands only annotations with the prefix
// "containerd.io/snapshot/" to a snapshotter.
const SnapshotPrefix = "containerd.io/snapshot/erofs."

// Annotations that save a round trip at mount. All are hints from outside.
const (
	LabelIndexRange         = SnapshotPrefix + "chunk-index.range"
	LabelIndexDigest        = SnapshotPrefix + "chunk-index.digest"
	LabelUncompressedDigest = SnapshotPrefix + "uncompressed-digest"
	// LabelBlobSize is the descriptor's size in bytes, decimal.
	LabelBlobSize = SnapshotPrefix + "blob-size"
	// LabelMediaType is the descriptor's media type.
	LabelMediaType = SnapshotPrefix + "media-type"
	// LabelPinned is "imageEnd:blobEnd", decimal: image data [0, imageEnd) is all
	// metadata, stored in blob [0, blobEnd).
	LabelPinned = SnapshotPrefix + "pinned"
	// LabelPrefetch is "imageEnd:blobEnd" of what start-up reads first, counted
	// from 0 like LabelPinned. Absent when no prefetch list was given.
	LabelPrefetch = SnapshotPrefix + "prefetch"
)
