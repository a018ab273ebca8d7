package erofs

// readPlain reads a contiguous file. Its address is on the primary device, in
// the image proper: addresses by which the kernel would be redirected to
// another device are behind its last block.
func (s *parser) readPlain(off int64, d *diskInode, n *inode) error {
	n.first = uint32(len(s.tree.exts))
	if n.size == 0 {
		if d.U != nullBlock && d.U != 0 {
			return refuse(RuleInode, off, "an empty file with an address")
		}
		return nil
	}
	blocks := alignUp(n.size, s.block) / s.block
	if blocks > int64(s.super.Blocks) || int64(d.U) > int64(s.super.Blocks)-blocks {
		return refuse(RuleExtent, off, "file data in %d blocks from block %d on, the image has %d", blocks, d.U, s.super.Blocks)
	}
	return s.addExtent(off, n, Extent{Len: n.size, Addr: int64(d.U) * s.block})
}

// readChunks reads a chunk map: 8-byte indexes, or 4-byte block numbers on the
// primary device. It returns the length of the inode with its map.
func (s *parser) readChunks(off, size int64, d *diskInode, n *inode) (int64, error) {
	n.first = uint32(len(s.tree.exts))
	if s.super.Incompat&incompatChunked == 0 {
		return 0, refuse(RuleFeatures, off, "a chunk-based file without the feature for it")
	}
	if d.U&^chunkKnown != 0 {
		return 0, refuse(RuleInode, off, "chunk format %#x has unknown bits", d.U)
	}
	width := int64(chunkBlockSize)
	if d.U&chunkIndexes != 0 {
		width = chunkIndexSize
	}
	shift := uint(d.U&chunkBitsMask) + uint(s.super.BlockBits)
	count := (n.size-1)>>shift + 1
	size = alignUp(off+size, width) - off
	if count > s.policy.ImageSize/width {
		return 0, refuse(RuleBounds, off, "a map of %d chunks, the image has %d bytes", count, s.policy.ImageSize)
	}
	for k := int64(0); k < count; {
		take := min(count-k, segmentSize/width)
		b, err := s.meta.view(off+size+k*width, take*width)
		if err != nil {
			return 0, err
		}
		for ; take > 0; take-- {
			e := Extent{Off: k << shift, Len: min(1<<shift, n.size-k<<shift)}
			if err := s.readChunk(off, b[:width], &e); err != nil {
				return 0, err
			}
			if err := s.addExtent(off, n, e); err != nil {
				return 0, err
			}
			b = b[width:]
			k++
		}
	}
	return size + count*width, nil
}

// readChunk reads one entry of a map into e, whose Off and Len are known.
func (s *parser) readChunk(off int64, b []byte, e *Extent) error {
	c := getChunk(b)
	if c.Block == nullBlock {
		if s.policy.NoHoles {
			return refuse(RuleHole, off, "a hole at byte %d of a file, where none is allowed", e.Off)
		}
		if c.Device != 0 || c.BlockHi != 0 && c.BlockHi != 0xFFFF {
			return refuse(RuleHole, off, "a hole at byte %d of a file with a device or an address", e.Off)
		}
		e.Addr = HoleAddr
		return nil
	}
	if c.BlockHi != 0 {
		return refuse(RuleExtent, off, "a 48-bit address at byte %d of a file", e.Off)
	}
	limit := int64(s.super.Blocks)
	if c.Device > 0 {
		if int(c.Device) > len(s.devices) {
			return refuse(RuleExtent, off, "byte %d of a file is on device %d of %d", e.Off, c.Device, len(s.devices))
		}
		limit = int64(s.devices[c.Device-1].Blocks)
	}
	blocks := alignUp(e.Len, s.block) / s.block
	if blocks > limit || int64(c.Block) > limit-blocks {
		return refuse(RuleExtent, off, "byte %d of a file is in %d blocks from block %d on, device %d has %d", e.Off, blocks, c.Block, c.Device, limit)
	}
	e.Device, e.Addr = c.Device, int64(c.Block)*s.block
	return nil
}

// addExtent appends e to the file n, or joins it to the extent before.
func (s *parser) addExtent(off int64, n *inode, e Extent) error {
	t := s.tree
	if n.count > 0 && t.exts[len(t.exts)-1].join(e) {
		return nil
	}
	if len(t.exts) >= s.policy.MaxExtents {
		return refuse(RuleLimit, off, "more than %d extents", s.policy.MaxExtents)
	}
	t.exts = grow(t.exts, e, uint64(s.policy.MaxExtents))
	n.count++
	return nil
}
