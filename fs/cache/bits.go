package cache

import (
	"math/bits"
	"sync/atomic"
)

// bitset is a fixed number of bits that are read and set without a lock.
type bitset []atomic.Uint64

func newBitset(n int) bitset { return make(bitset, wordsFor(n)) }

// wordsFor returns how many 64-bit words hold n bits.
func wordsFor(n int) int { return (n + 63) / 64 }

func (b bitset) get(i int) bool { return b[i/64].Load()&(1<<(i%64)) != 0 }

// set sets bit i and reports whether it was clear.
func (b bitset) set(i int) bool {
	mask := uint64(1) << (i % 64)
	return b[i/64].Or(mask)&mask == 0
}

// all reports whether every bit of [first, last] is set.
func (b bitset) all(first, last int) bool {
	for w := first / 64; w <= last/64; w++ {
		mask := ^uint64(0)
		if w == first/64 {
			mask &= ^uint64(0) << (first % 64)
		}
		if w == last/64 {
			mask &= ^uint64(0) >> (63 - last%64)
		}
		if b[w].Load()&mask != mask {
			return false
		}
	}
	return true
}

// snapshot copies the words into dst, which has the same length.
func (b bitset) snapshot(dst []uint64) {
	for i := range b {
		dst[i] = b[i].Load()
	}
}

// restore sets the words to src, which has the same length.
func (b bitset) restore(src []uint64) {
	for i := range b {
		b[i].Store(src[i])
	}
}

// countWords returns how many bits are set.
func countWords(words []uint64) int {
	n := 0
	for _, w := range words {
		n += bits.OnesCount64(w)
	}
	return n
}
