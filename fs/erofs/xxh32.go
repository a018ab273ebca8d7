package erofs

import (
	"encoding/binary"
	"math/bits"
)

// xxh32 is XXH32 as the xxHash specification defines it. EROFS names the bits
// of its xattr filters by it.
func xxh32(p []byte, seed uint32) uint32 {
	const (
		p1 = 2654435761
		p2 = 2246822519
		p3 = 3266489917
		p4 = 668265263
		p5 = 374761393
	)
	h := seed + p5
	n := uint32(len(p))
	if len(p) >= 16 {
		acc := [4]uint32{seed, seed, seed, seed}
		acc[0] += p1
		acc[0] += p2
		acc[1] += p2
		acc[3] -= p1
		for ; len(p) >= 16; p = p[16:] {
			for k := range acc {
				acc[k] = bits.RotateLeft32(acc[k]+binary.LittleEndian.Uint32(p[4*k:])*p2, 13) * p1
			}
		}
		h = bits.RotateLeft32(acc[0], 1) + bits.RotateLeft32(acc[1], 7) +
			bits.RotateLeft32(acc[2], 12) + bits.RotateLeft32(acc[3], 18)
	}
	h += n
	for ; len(p) >= 4; p = p[4:] {
		h = bits.RotateLeft32(h+binary.LittleEndian.Uint32(p)*p3, 17) * p4
	}
	for _, c := range p {
		h = bits.RotateLeft32(h+uint32(c)*p5, 11) * p1
	}
	h = (h ^ h>>15) * p2
	h = (h ^ h>>13) * p3
	return h ^ h>>16
}
