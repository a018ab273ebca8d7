package erofs

import (
	"fmt"
	"io/fs"
	"math/bits"
)

// HoleAlign returns the alignment, a power of two, that the ends of holes in a
// file of size bytes should have: a block for files of up to 256 MiB, and beyond
// that so much that its chunk map stays below half a mebibyte. All chunks of a
// file have one length, so a single block of data in a file of a tebibyte would
// otherwise need a map of two gibibytes. Zeros that a coarser hole leaves in data
// compress to nothing.
func HoleAlign(size int64) int64 {
	const chunks, block = 1 << 16, 1 << 12
	if size <= chunks*block {
		return block
	}
	return 1 << bits.Len64(uint64(size-1)/chunks)
}

// shapeFile decides how a regular file's extents are stored: plain when they
// are one run on the primary device, by chunk indexes otherwise.
func (l *Layout) shapeFile(i Inode) error {
	n, p := &l.t.inodes[i], &l.inodes[i]
	exts := l.t.Extents(i)
	if err := l.checkExtents(n.size, exts); err != nil {
		return err
	}
	if n.size == 0 {
		return nil
	}
	boundaries, one := l.boundaries(exts)
	if one && exts[0].Device == 0 && exts[0].Addr != HoleAddr {
		p.start = 0 // relocated when the data area's start is known
		return nil
	}
	chunkBits := chunkBitsFor(n.size, boundaries, l.o.BlockBits)
	chunk := int64(1) << (chunkBits + int(l.o.BlockBits))
	chunks := (n.size-1)/chunk + 1
	if chunks > maxChunkMap/chunkIndexSize {
		return fmt.Errorf("its extents need a map of %d chunks of %d bytes, align its holes to %d bytes: %w", chunks, chunk, HoleAlign(n.size), fs.ErrInvalid)
	}
	if l.mapped += chunks; l.mapped > maxChunkMaps/chunkIndexSize {
		return fmt.Errorf("the chunk maps of all files exceed %d bytes: %w", maxChunkMaps, fs.ErrInvalid)
	}
	p.format |= layoutChunks << formatLayoutShift
	p.chunks = uint32(chunks)
	p.start = uint32(chunkBits) | chunkIndexes
	l.chunked = true
	return nil
}

// checkExtents holds what every reader relies on: the extents cover the file,
// in order, block aligned, on known devices and within 32-bit block numbers.
func (l *Layout) checkExtents(size int64, exts []Extent) error {
	var off int64
	mask := l.block - 1
	for k, e := range exts {
		switch {
		case e.Off != off || e.Len <= 0 || e.Off&mask != 0 || e.Len > size-off:
			return fmt.Errorf("extent %d is [%d, +%d), not the block-aligned continuation at %d: %w", k, e.Off, e.Len, off, fs.ErrInvalid)
		case int(e.Device) > len(l.o.Devices):
			return fmt.Errorf("extent %d is on device %d of %d: %w", k, e.Device, len(l.o.Devices), fs.ErrInvalid)
		case e.Addr == HoleAddr:
		case e.Addr < 0 || e.Addr&mask != 0:
			return fmt.Errorf("extent %d has address %d: %w", k, e.Addr, fs.ErrInvalid)
		case e.Addr/l.block+(e.Len-1)/l.block >= l.deviceBlocks(e.Device):
			return fmt.Errorf("extent %d ends at block %d, behind the end of device %d: %w", k, e.Addr/l.block+(e.Len-1)/l.block+1, e.Device, fs.ErrInvalid)
		}
		off += e.Len
	}
	if off != size {
		return fmt.Errorf("its extents cover %d bytes: %w", off, fs.ErrInvalid)
	}
	return nil
}

// deviceBlocks is how many blocks a device can hold. That of the primary one
// is known only when the data area is: WriteMeta looks again.
func (l *Layout) deviceBlocks(device uint16) int64 {
	if device == 0 {
		return nullBlock
	}
	return int64(l.o.Devices[device-1].Blocks)
}

// boundaries returns the bitwise or of the block numbers in the file at which a
// new run begins, and whether the file is one run. A run is what one chunk can
// span: neighbours on a device, or only holes.
func (l *Layout) boundaries(exts []Extent) (or int64, one bool) {
	one = true
	for k := 1; k < len(exts); k++ {
		a, b := &exts[k-1], &exts[k]
		if a.Addr == HoleAddr && b.Addr == HoleAddr {
			continue
		}
		if a.Addr != HoleAddr && a.Device == b.Device && a.Addr+a.Len == b.Addr {
			continue
		}
		or |= b.Off / l.block
		one = false
	}
	return or, one
}

// chunkBitsFor returns log2 of the largest chunk, in blocks, such that every
// boundary falls between two chunks, but none larger than the file needs.
func chunkBitsFor(size, boundaries int64, blockBits uint8) int {
	n := bits.Len64(uint64((size - 1) >> blockBits)) // one chunk holds the file
	if boundaries != 0 {
		n = min(n, bits.TrailingZeros64(uint64(boundaries)))
	}
	return min(n, chunkBitsMask)
}
