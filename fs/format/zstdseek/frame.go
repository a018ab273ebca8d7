package zstdseek

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// Sizes and fields of a zstd frame (RFC 8878, sections 3.1.1 and 3.1.2).
const (
	blockHeaderLen     = 3
	blockTypeRLE       = 1
	blockTypeReserved  = 3
	checksumLen        = 4
	skippableHeaderLen = 8
)

var errCut = errors.New("its zstd frame is cut off")

// frameLen returns the length of the zstd frame that b begins with, by walking
// its block headers. Skippable frames, other formats and frames that need a
// dictionary are errors.
func frameLen(b []byte) (int, error) {
	var h zstd.Header
	if err := h.Decode(b); err != nil {
		return 0, fmt.Errorf("its zstd frame header cannot be read: %w", err)
	}
	switch {
	case h.Skippable:
		return 0, errors.New("it begins with a skippable frame, not with data")
	case h.DictionaryID != 0:
		return 0, fmt.Errorf("its zstd frame needs dictionary %d", h.DictionaryID)
	}
	pos := h.HeaderSize
	for last := false; !last; {
		if len(b)-pos < blockHeaderLen {
			return 0, errCut
		}
		v := uint32(b[pos]) | uint32(b[pos+1])<<8 | uint32(b[pos+2])<<16
		pos += blockHeaderLen
		last = v&1 != 0
		n := int(v >> 3)
		switch v >> 1 & 3 {
		case blockTypeRLE:
			n = 1
		case blockTypeReserved:
			return 0, errors.New("its zstd frame has a block of the reserved type")
		}
		if len(b)-pos < n {
			return 0, errCut
		}
		pos += n
	}
	if h.HasCheckSum {
		if len(b)-pos < checksumLen {
			return 0, errCut
		}
		pos += checksumLen
	}
	return pos, nil
}

// onlySkippable accepts any number of whole skippable frames: the padding that
// the draft allows before the index.
func onlySkippable(b []byte) error {
	for len(b) > 0 {
		if len(b) < skippableHeaderLen || binary.LittleEndian.Uint32(b)&0xFFFFFFF0 != 0x184D2A50 {
			return errors.New("more than one zstd frame, or bytes that are none, follow its first")
		}
		n := uint64(binary.LittleEndian.Uint32(b[4:]))
		b = b[skippableHeaderLen:]
		if n > uint64(len(b)) {
			return errors.New("the skippable frame after its data is cut off")
		}
		b = b[n:]
	}
	return nil
}
