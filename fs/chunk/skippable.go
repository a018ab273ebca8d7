package chunk

import "encoding/binary"

// A zstd skippable frame is a magic number 0x184D2A5x, a 32-bit length and that
// many bytes which every decoder passes over (RFC 8878, section 3.1.2).
const (
	// SkippableHeaderLen is the length of magic number and length, in bytes.
	SkippableHeaderLen = 8

	skippableMagic     = 0x184D2A50
	skippableMagicMask = 0xFFFFFFF0
)

// AppendSkippableFrame appends to dst a zstd skippable frame that holds payload
// and returns the result. payload is shorter than 4 GiB; an index always is.
func AppendSkippableFrame(dst, payload []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, skippableMagic)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(payload)))
	return append(dst, payload...)
}

// SkippablePayload returns what the skippable frame b holds; it aliases b. b
// must be exactly one such frame, of any of the 16 magic numbers; anything else
// gives a *CorruptError.
func SkippablePayload(b []byte) ([]byte, error) {
	if len(b) < SkippableHeaderLen {
		return nil, corrupt("skippable frame", "%d bytes are shorter than its header", len(b))
	}
	if m := binary.LittleEndian.Uint32(b); m&skippableMagicMask != skippableMagic {
		return nil, corrupt("skippable frame", "magic is %#08x", m)
	}
	payload := b[SkippableHeaderLen:]
	if n := binary.LittleEndian.Uint32(b[4:]); uint64(n) != uint64(len(payload)) {
		return nil, corrupt("skippable frame", "says %d bytes, the section has %d", n, len(payload))
	}
	return payload, nil
}
