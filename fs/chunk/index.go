package chunk

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrUnknownIndex marks a chunk index of a version or with a flag that this
// release does not know. It is not corrupt: the layer is read sequentially.
var ErrUnknownIndex = errors.New("chunk index is of an unknown kind")

// Limits of a chunk index. They bound what one entry can make a reader
// allocate; the draft leaves them open.
const (
	// BlockSize is the alignment of a chunk's start in image data, in bytes: the
	// block size of EROFS and the unit in which a kernel asks.
	BlockSize = 4096
	// MaxChunkLen is the longest chunk of image data that is accepted, in bytes.
	MaxChunkLen = 64 << 20
	// MaxStoredLen is the longest stored chunk that is accepted, in bytes: a
	// MaxChunkLen of incompressible data with its zstd headers and padding.
	MaxStoredLen = MaxChunkLen + MaxChunkLen/64
	// MaxIndexLen is the longest index that is fetched, in bytes: enough for
	// 1.3 million chunks, 320 GiB of image data at the default chunk length.
	MaxIndexLen = 64 << 20
)

// Layout of the index, little endian (draft EROFS image spec, "Chunk index").
const (
	indexMagic      = "\xCD\xE4\xEC\x67"
	indexVersion    = 1
	indexHeaderLen  = 32
	offCompression  = 5
	offFlags        = 6
	offSize         = 8
	offCount        = 16
	offHashFamily   = 20
	offHashSize     = 21
	offReserved     = 22
	entryOffsetsLen = 16

	hashNone = 0
	hashSHA2 = 1
)

// Index is a parsed chunk index. It implements Map over the bytes it was parsed
// from: nothing is copied, no object is made for an entry.
type Index struct {
	raw      []byte // header and entries
	entryLen int
	n        int
	size     int64 // image data
	blobEnd  int64
	codec    Codec
}

var _ Map = (*Index)(nil)

// ParseIndex checks every rule of a chunk index and returns a view of b, which
// the caller must not change afterwards. b is header and entries without the
// skippable frame's own header. blobEnd is the blob offset at which the section
// that holds the index begins, which is where the last stored chunk ends.
//
// An unknown version or flag gives an error that wraps ErrUnknownIndex, every
// broken rule a *CorruptError. No chunks, and then no image data, is valid.
func ParseIndex(b []byte, blobEnd int64) (*Index, error) {
	if len(b) < indexHeaderLen {
		return nil, corrupt("chunk index", "%d bytes are shorter than its header of %d", len(b), indexHeaderLen)
	}
	if string(b[:4]) != indexMagic {
		return nil, corrupt("chunk index", "magic is %x, not %x", b[:4], indexMagic)
	}
	if v := b[4]; v != indexVersion {
		return nil, fmt.Errorf("%w: version %d, only %d is known", ErrUnknownIndex, v, indexVersion)
	}
	if f := binary.LittleEndian.Uint16(b[offFlags:]); f != 0 {
		return nil, fmt.Errorf("%w: unknown flags %#x", ErrUnknownIndex, f)
	}
	x, err := parseHeader(b, blobEnd)
	if err != nil {
		return nil, err
	}
	if err := x.checkEntries(); err != nil {
		return nil, err
	}
	return x, nil
}

// parseHeader reads the fields after version and flags and holds them against
// the length of b, so that afterwards every entry is known to be inside b.
func parseHeader(b []byte, blobEnd int64) (*Index, error) {
	codec := Codec(b[offCompression])
	if codec != CodecNone && codec != CodecZstd {
		return nil, corrupt("chunk index", "compression %d is not defined", codec)
	}
	for _, c := range b[offReserved:indexHeaderLen] {
		if c != 0 {
			return nil, corrupt("chunk index", "reserved bytes are not zero")
		}
	}
	family, hashLen := b[offHashFamily], int(b[offHashSize])
	switch {
	case family == hashNone && hashLen == 0:
	case family == hashSHA2 && (hashLen == 32 || hashLen == 64):
	default:
		return nil, corrupt("chunk index", "hash family %d with %d bytes is not defined", family, hashLen)
	}
	size := binary.LittleEndian.Uint64(b[offSize:])
	n := binary.LittleEndian.Uint32(b[offCount:])
	entryLen := entryOffsetsLen + hashLen
	if want := indexHeaderLen + uint64(n)*uint64(entryLen); want != uint64(len(b)) {
		return nil, corrupt("chunk index", "is %d bytes long, its %d entries need %d", len(b), n, want)
	}
	if size > uint64(n)*MaxChunkLen {
		return nil, corrupt("chunk index", "%d bytes of image data do not fit in %d chunks", size, n)
	}
	if blobEnd < 0 {
		return nil, corrupt("chunk index", "begins at blob offset %d", blobEnd)
	}
	return &Index{raw: b, entryLen: entryLen, n: int(n), size: int64(size), blobEnd: blobEnd, codec: codec}, nil
}

// checkEntries holds each entry against its successor. Offsets are compared as
// unsigned before any of them is used as an int64.
func (x *Index) checkEntries() error {
	if x.n > 0 && x.dataOff(0) != 0 {
		return corrupt("chunk 0", "image data begins at %d, not at 0", x.dataOff(0))
	}
	for i := range x.n {
		blobOff, dataOff := x.blobOff(i), x.dataOff(i)
		blobNext, dataNext := uint64(x.blobEnd), uint64(x.size)
		if i+1 < x.n {
			blobNext, dataNext = x.blobOff(i+1), x.dataOff(i+1)
		}
		switch {
		case dataOff%BlockSize != 0:
			return corrupt(entryName(i), "image offset %d is not a multiple of %d", dataOff, BlockSize)
		case dataNext <= dataOff:
			return corrupt(entryName(i), "image data ends at %d, not after its start %d", dataNext, dataOff)
		case dataNext-dataOff > MaxChunkLen:
			return corrupt(entryName(i), "%d bytes of image data are more than %d", dataNext-dataOff, MaxChunkLen)
		case blobNext <= blobOff || blobNext > uint64(x.blobEnd):
			return corrupt(entryName(i), "stored range [%d, %d) is empty or outside [0, %d)", blobOff, blobNext, x.blobEnd)
		case blobNext-blobOff > MaxStoredLen:
			return corrupt(entryName(i), "%d stored bytes are more than %d", blobNext-blobOff, MaxStoredLen)
		case x.codec == CodecNone && blobNext-blobOff != dataNext-dataOff:
			return corrupt(entryName(i), "%d stored bytes cannot be %d bytes of raw image data", blobNext-blobOff, dataNext-dataOff)
		}
	}
	return nil
}

func entryName(i int) string { return fmt.Sprintf("chunk %d", i) }

func corrupt(what, format string, args ...any) error {
	return &CorruptError{Origin: OriginRegistry, What: what, Reason: fmt.Sprintf(format, args...)}
}

func (x *Index) blobOff(i int) uint64 {
	return binary.LittleEndian.Uint64(x.raw[indexHeaderLen+i*x.entryLen:])
}

func (x *Index) dataOff(i int) uint64 {
	return binary.LittleEndian.Uint64(x.raw[indexHeaderLen+i*x.entryLen+8:])
}

// Size returns the length of the image data in bytes.
func (x *Index) Size() int64 { return x.size }

// Len returns the number of chunks.
func (x *Index) Len() int { return x.n }

// Codec returns the codec of all chunks.
func (x *Index) Codec() Codec { return x.codec }

// HashSize returns the length of each chunk's digest in bytes: 32, 64, or 0
// when the index carries none.
func (x *Index) HashSize() int { return x.entryLen - entryOffsetsLen }

// Bytes returns the index as it was parsed. The slice aliases the Index.
func (x *Index) Bytes() []byte { return x.raw }

// At returns chunk i, 0 <= i < Len. It does not allocate.
func (x *Index) At(i int) Chunk {
	entry := x.raw[indexHeaderLen+i*x.entryLen:][:x.entryLen:x.entryLen]
	blobNext, dataNext := x.blobEnd, x.size
	if i+1 < x.n {
		blobNext, dataNext = int64(x.blobOff(i+1)), int64(x.dataOff(i+1))
	}
	c := Chunk{
		Blob:  Extent{Off: int64(binary.LittleEndian.Uint64(entry))},
		Data:  Extent{Off: int64(binary.LittleEndian.Uint64(entry[8:]))},
		Codec: x.codec,
	}
	c.Blob.Len = blobNext - c.Blob.Off
	c.Data.Len = dataNext - c.Data.Off
	if len(entry) > entryOffsetsLen {
		c.Sum = entry[entryOffsetsLen:]
	}
	return c
}

// Find returns the number of the chunk that holds image-data offset off, or -1
// when off is outside [0, Size). It does not allocate.
func (x *Index) Find(off int64) int {
	if off < 0 || off >= x.size {
		return -1
	}
	lo, hi := 0, x.n // chunk lo starts at or before off, chunk hi after it
	for hi-lo > 1 {
		mid := int(uint(lo+hi) / 2)
		if x.dataOff(mid) <= uint64(off) {
			lo = mid
		} else {
			hi = mid
		}
	}
	return lo
}
