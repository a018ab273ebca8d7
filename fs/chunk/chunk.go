package chunk

// Extent is a half-open byte range [Off, Off+Len) in one address space: the
// field or parameter that holds it says which one (image data or blob).
type Extent struct {
	// Off is the first byte.
	Off int64
	// Len is the number of bytes; never negative in a valid extent.
	Len int64
}

// End returns the offset of the first byte after the extent.
func (e Extent) End() int64 { return e.Off + e.Len }

// Codec names how the stored bytes of a chunk encode its image data.
// The values are those of the chunk index (draft EROFS image spec, header
// byte 5).
type Codec uint8

const (
	// CodecNone stores image data as it is: stored and decoded length are equal.
	CodecNone Codec = 0
	// CodecZstd stores each chunk as exactly one zstd frame.
	CodecZstd Codec = 1
)

// String returns the codec's name as it is written in messages and JSON.
func (c Codec) String() string {
	switch c {
	case CodecNone:
		return "none"
	case CodecZstd:
		return "zstd"
	}
	return "unknown"
}

// Chunk is the unit of fetch, of verification and of residency.
type Chunk struct {
	// Data is the chunk's range in image data: 4 KiB aligned, never empty. Only
	// the last chunk's end may be unaligned.
	Data Extent
	// Blob is the range of the stored bytes in the blob.
	Blob Extent
	// Codec turns stored bytes into image data.
	Codec Codec
	// Sum is the raw SHA-256 (32 bytes) or SHA-512 (64 bytes) of the stored
	// bytes; nil when the format carries none. It aliases the map: do not write.
	Sum []byte
}

// Map says where image data comes from. It is immutable and safe for
// concurrent use. Its chunks are sorted, do not overlap and cover [0, Size) of
// image data exactly once.
type Map interface {
	// Size is the length of the image data in bytes.
	Size() int64
	// Len is the number of chunks.
	Len() int
	// At returns chunk i, 0 <= i < Len. It does not allocate.
	At(i int) Chunk
	// Find returns the number of the chunk that holds image-data offset off, or
	// -1 when off is outside [0, Size). It does not allocate.
	Find(off int64) int
}
