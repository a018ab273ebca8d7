package formattest

import (
	"crypto/sha256"
	"fmt"

	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// BuildZstd encodes image as a +zstd layer of chunks of chunkLen bytes, a
// multiple of 4 KiB, and returns the blob and its descriptor with the draft's
// annotations.
func BuildZstd(image []byte, chunkLen int) ([]byte, ocispec.Descriptor, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return nil, ocispec.Descriptor{}, fmt.Errorf("making an encoder: %w", err)
	}
	return build(image, chunkLen, chunk.CodecZstd, func(p []byte) []byte { return enc.EncodeAll(p, nil) })
}

// BuildRaw encodes image as a raw layer, like BuildZstd.
func BuildRaw(image []byte, chunkLen int) ([]byte, ocispec.Descriptor, error) {
	return build(image, chunkLen, chunk.CodecNone, func(p []byte) []byte { return p })
}

func build(image []byte, chunkLen int, codec chunk.Codec, store func([]byte) []byte) ([]byte, ocispec.Descriptor, error) {
	var blob []byte
	b := chunk.NewIndexBuilder(codec, sha256.Size)
	for off := 0; off < len(image); off += chunkLen {
		stored := store(image[off:min(off+chunkLen, len(image))])
		sum := sha256.Sum256(stored)
		if err := b.Add(int64(len(blob)), int64(off), sum[:]); err != nil {
			return nil, ocispec.Descriptor{}, fmt.Errorf("building a layer: %w", err)
		}
		blob = append(blob, stored...)
	}
	index := b.Bytes(int64(len(image)))
	desc := ocispec.Descriptor{MediaType: chunk.MediaTypeLayer, Annotations: map[string]string{}}
	section := chunk.Extent{Off: int64(len(blob))}
	if codec == chunk.CodecZstd {
		blob = chunk.AppendSkippableFrame(blob, index)
		desc.MediaType = chunk.MediaTypeLayerZstd
		desc.Annotations[chunk.AnnotationUncompressedDigest] = digest.FromBytes(image).String()
	} else {
		blob = append(blob, index...)
	}
	section.Len = int64(len(blob)) - section.Off
	desc.Annotations[chunk.AnnotationIndexRange] = chunk.FormatRange(section)
	desc.Annotations[chunk.AnnotationIndexDigest] = digest.FromBytes(index).String()
	desc.Digest = digest.FromBytes(blob)
	desc.Size = int64(len(blob))
	return blob, desc, nil
}
