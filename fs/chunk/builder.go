package chunk

import (
	"encoding/binary"
	"fmt"
)

// IndexBuilder makes a chunk index entry by entry. It refuses what ParseIndex
// would refuse as far as it can see it. It is not safe for concurrent use.
type IndexBuilder struct {
	buf      []byte // header with open fields, then entries
	n        int
	hashSize int
	prevBlob int64
	prevData int64
	codec    Codec
}

// NewIndexBuilder returns a builder for chunks of one codec. hashSize is the
// length of a digest in bytes: 32, 64, or 0 for an index without digests. Any
// other makes the first Add fail.
func NewIndexBuilder(codec Codec, hashSize int) *IndexBuilder {
	return &IndexBuilder{buf: make([]byte, indexHeaderLen), hashSize: hashSize, codec: codec}
}

// Add appends a chunk: where its stored bytes begin in the blob, where its image
// data begins, and the SHA-2 digest of its stored bytes, which is copied. Chunks
// come in order and without gaps.
func (b *IndexBuilder) Add(blobOff, dataOff int64, sum []byte) error {
	switch {
	case b.codec != CodecNone && b.codec != CodecZstd:
		return fmt.Errorf("adding chunk %d: codec %d cannot be indexed", b.n, b.codec)
	case b.hashSize != 0 && b.hashSize != 32 && b.hashSize != 64:
		return fmt.Errorf("adding chunk %d: a digest of %d bytes cannot be indexed", b.n, b.hashSize)
	case len(sum) != b.hashSize:
		return fmt.Errorf("adding chunk %d: its digest has %d bytes, not %d", b.n, len(sum), b.hashSize)
	case blobOff < 0 || dataOff < 0 || dataOff%BlockSize != 0:
		return fmt.Errorf("adding chunk %d: offsets %d (blob) and %d (image) are negative or unaligned", b.n, blobOff, dataOff)
	case b.n == 0 && dataOff != 0:
		return fmt.Errorf("adding chunk 0: image data begins at %d, not at 0", dataOff)
	case b.n > 0 && (blobOff <= b.prevBlob || dataOff <= b.prevData):
		return fmt.Errorf("adding chunk %d: offsets %d (blob) and %d (image) do not ascend", b.n, blobOff, dataOff)
	case b.n > 0 && dataOff-b.prevData > MaxChunkLen:
		return fmt.Errorf("adding chunk %d: its predecessor is longer than %d bytes", b.n, MaxChunkLen)
	case len(b.buf)+entryOffsetsLen+b.hashSize > MaxIndexLen:
		return fmt.Errorf("adding chunk %d: the index would be longer than %d bytes, use longer chunks", b.n, MaxIndexLen)
	}
	b.buf = binary.LittleEndian.AppendUint64(b.buf, uint64(blobOff))
	b.buf = binary.LittleEndian.AppendUint64(b.buf, uint64(dataOff))
	b.buf = append(b.buf, sum...)
	b.prevBlob, b.prevData = blobOff, dataOff
	b.n++
	return nil
}

// Len returns the number of chunks added.
func (b *IndexBuilder) Len() int { return b.n }

// Bytes returns the index, header and entries, for an image of uncompressedSize
// bytes. The slice aliases the builder, which must not be used afterwards.
func (b *IndexBuilder) Bytes(uncompressedSize int64) []byte {
	h := b.buf[:indexHeaderLen]
	copy(h, indexMagic)
	h[4] = indexVersion
	h[offCompression] = byte(b.codec)
	binary.LittleEndian.PutUint64(h[offSize:], uint64(uncompressedSize))
	binary.LittleEndian.PutUint32(h[offCount:], uint32(b.n))
	if b.hashSize > 0 {
		h[offHashFamily] = hashSHA2
		h[offHashSize] = byte(b.hashSize)
	}
	return b.buf
}
