package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// The bitmap file is two slots of equal length, written in turn. A slot, little
// endian:
//
//	 0  8  magic "lzbitmap"
//	 8  4  version 1
//	12  4  flags: 1 = the whole layer was verified
//	16  8  sequence number; the higher of two valid slots counts
//	24  8  number of chunks
//	32  8  length of the image data in bytes
//	40 16  tag of the data file
//	56 32  fingerprint of layer and chunk map
//	88     bits, chunk 0 is the lowest bit of the first 64-bit word
//	       SHA-256 of all before it
const (
	slotMagic     = "lzbitmap"
	slotVersion   = 1
	slotHeaderLen = 88
	slotAlign     = 4096

	flagVerified = 1
)

// tag ties a bitmap to one data file: it is in the bitmap and in an extended
// attribute of the file, so that a file that was replaced is not believed.
type tag [16]byte

// identity is what a bitmap must agree with to be believed.
type identity struct {
	chunks      int
	size        int64
	tag         tag
	fingerprint [sha256.Size]byte
}

// slot is one state of the bitmap.
type slot struct {
	seq      uint64
	verified bool
	words    []uint64
}

// slotLen returns the length of a slot in the file, in bytes.
func slotLen(chunks int) int64 {
	n := int64(slotHeaderLen + 8*wordsFor(chunks) + sha256.Size)
	return (n + slotAlign - 1) / slotAlign * slotAlign
}

// encodeSlot returns s as it is written, padded to slotLen.
func encodeSlot(id *identity, s *slot) []byte {
	b := make([]byte, 0, slotLen(id.chunks))
	b = append(b, slotMagic...)
	b = binary.LittleEndian.AppendUint32(b, slotVersion)
	var flags uint32
	if s.verified {
		flags |= flagVerified
	}
	b = binary.LittleEndian.AppendUint32(b, flags)
	b = binary.LittleEndian.AppendUint64(b, s.seq)
	b = binary.LittleEndian.AppendUint64(b, uint64(id.chunks))
	b = binary.LittleEndian.AppendUint64(b, uint64(id.size))
	b = append(b, id.tag[:]...)
	b = append(b, id.fingerprint[:]...)
	for _, w := range s.words {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)[:cap(b)]
}

// decodeSlot returns the slot in b if it is whole and belongs to id. Lengths
// come from id, never from b.
func decodeSlot(id *identity, b []byte) (*slot, bool) {
	body := slotHeaderLen + 8*wordsFor(id.chunks)
	if len(b) < body+sha256.Size {
		return nil, false
	}
	s := &slot{
		seq:      binary.LittleEndian.Uint64(b[16:]),
		verified: b[12]&flagVerified != 0,
		words:    make([]uint64, wordsFor(id.chunks)),
	}
	for i := range s.words {
		s.words[i] = binary.LittleEndian.Uint64(b[slotHeaderLen+8*i:])
	}
	// Any difference in magic, version, identity, padding or checksum shows here.
	if s.seq == math.MaxUint64 || !bytes.Equal(encodeSlot(id, s)[:body+sha256.Size], b[:body+sha256.Size]) {
		return nil, false
	}
	if n := id.chunks % 64; n != 0 && s.words[len(s.words)-1]>>n != 0 {
		return nil, false
	}
	return s, true
}

// loadSlots reads the newest valid slot of the bitmap file r, or an empty one
// when there is none. Only a failing disk is an error.
func loadSlots(id *identity, r io.ReaderAt) (*slot, error) {
	best := &slot{words: make([]uint64, wordsFor(id.chunks))}
	n := slotLen(id.chunks)
	buf := make([]byte, n)
	for i := range int64(2) {
		got, err := r.ReadAt(buf, i*n)
		if err != nil && err != io.EOF {
			return nil, fmt.Errorf("reading the bitmap: %w", err)
		}
		if s, ok := decodeSlot(id, buf[:got]); ok && s.seq >= best.seq {
			best = s
		}
	}
	return best, nil
}

// fingerprint names a layer and everything about its chunk map that decides
// what the data file must hold.
func fingerprint(layer string, m chunk.Map) [sha256.Size]byte {
	h := sha256.New()
	fmt.Fprintf(h, "%d %s %d %d ", len(layer), layer, m.Size(), m.Len())
	var buf [18]byte
	for i := range m.Len() {
		c := m.At(i)
		binary.LittleEndian.PutUint64(buf[:], uint64(c.Data.Off))
		binary.LittleEndian.PutUint64(buf[8:], uint64(c.Blob.Off))
		buf[16], buf[17] = byte(c.Codec), byte(len(c.Sum))
		h.Write(buf[:])
		h.Write(c.Sum)
	}
	return [sha256.Size]byte(h.Sum(nil))
}
