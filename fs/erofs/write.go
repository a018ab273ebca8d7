package erofs

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"math"
	"slices"
)

// WriteMeta writes the metadata, exactly the first MetaSize bytes of the image,
// for a data area of dataSize bytes behind it on the primary device. It returns
// how many bytes it wrote. It may be called more than once. The image is whole
// blocks: pad the data area to a multiple of the block size, or the kernel fails
// to read its last block.
func (l *Layout) WriteMeta(w io.Writer, dataSize int64) (int64, error) {
	blocks := (l.metaSize + alignUp(dataSize, l.block)) / l.block
	if dataSize < 0 || blocks >= nullBlock {
		return 0, fmt.Errorf("writing EROFS metadata: a data area of %d bytes: %w", dataSize, fs.ErrInvalid)
	}
	m := &metaWriter{l: l, blocks: blocks, w: bufio.NewWriterSize(w, 256<<10)}
	err := m.run()
	if err == nil {
		err = m.w.Flush()
	}
	if err != nil {
		return m.at - int64(m.w.Buffered()), fmt.Errorf("writing EROFS metadata: %w", err)
	}
	return m.at, nil
}

// metaWriter streams metadata in the order of its addresses.
type metaWriter struct {
	l      *Layout
	blocks int64 // of the primary device
	w      *bufio.Writer
	at     int64
	buf    []byte
	// head holds the start of the image back, as far as the superblock's
	// checksum covers it; nil when it is written.
	head []byte
}

var zeros [4096]byte

func (m *metaWriter) run() error {
	l := m.l
	m.head = make([]byte, 0, superOffset+superChecksumLen(l.o.BlockBits))
	if err := m.writeTables(); err != nil {
		return err
	}
	if err := m.writeInodes(); err != nil {
		return err
	}
	if err := m.pad(l.sharedBase); err != nil {
		return err
	}
	for _, x := range l.xattrs.order {
		m.buf = l.t.appendXattr(m.buf[:0], l.t.xattrs[x])
		if err := m.write(m.buf); err != nil {
			return err
		}
	}
	for k := range l.inodes {
		if err := m.writeBlocks(Inode(k)); err != nil {
			return err
		}
	}
	return m.pad(l.metaSize)
}

// write appends p. The checksum of the superblock goes in when all that it
// covers is there.
func (m *metaWriter) write(p []byte) error {
	m.at += int64(len(p))
	if m.head != nil {
		n := min(len(p), cap(m.head)-len(m.head))
		m.head = append(m.head, p[:n]...)
		p = p[n:]
		if len(m.head) < cap(m.head) {
			return nil
		}
		sum := superChecksum(m.head[superOffset:])
		binary.LittleEndian.PutUint32(m.head[superOffset+4:], sum)
		if _, err := m.w.Write(m.head); err != nil {
			return err
		}
		m.head = nil
	}
	_, err := m.w.Write(p)
	return err
}

// pad writes zeros up to the address to.
func (m *metaWriter) pad(to int64) error {
	for m.at < to {
		if err := m.write(zeros[:min(to-m.at, int64(len(zeros)))]); err != nil {
			return err
		}
	}
	return nil
}

func (m *metaWriter) writeTables() error {
	l := m.l
	s := superblock{
		Compat: compatChecksum | compatMtime, BlockBits: l.o.BlockBits,
		RootNid: uint16(l.inodes[RootInode].nid), Inodes: uint64(l.t.Len()),
		Epoch: l.epoch, EpochNsec: l.epochNsec,
		Blocks: uint32(m.blocks), MetaBlock: l.metaBlock, XattrBlock: uint32(l.sharedBase / l.block),
		UUID: l.o.UUID, Devices: uint16(len(l.o.Devices)),
	}
	if len(l.t.xattrs) > 0 {
		s.Compat |= compatXattrFilter
	}
	if l.chunked {
		s.Incompat |= incompatChunked
	}
	if s.Devices > 0 {
		s.Incompat |= incompatDevices
		s.DeviceSlot = firstFreeSlot
	}
	if since := l.o.BuildTime - l.epoch; l.o.BuildTime >= l.epoch && since <= math.MaxUint32 {
		s.BuildTime = uint32(since)
	}
	if err := m.pad(superOffset); err != nil {
		return err
	}
	m.buf = append(m.buf[:0], zeros[:superSize]...)
	s.put(m.buf)
	if err := m.write(m.buf); err != nil {
		return err
	}
	// Devices follow each other in the flat address space behind the primary
	// one. One that would not fit in 32 bits gets no address there: kernels before
	// 7.1 would take its low bits for a block of the primary device.
	uni := uint64(m.blocks)
	for _, d := range l.o.Devices {
		slot := deviceSlot{Blocks: d.Blocks, UniAddr: uni}
		copy(slot.Tag[:], d.Tag)
		if uni += d.Blocks; uni > nullBlock {
			slot.UniAddr, uni = 0, nullBlock+1
		}
		slot.put(m.buf)
		if err := m.write(m.buf[:slotSize]); err != nil {
			return err
		}
	}
	return nil
}

func (m *metaWriter) writeInodes() error {
	l := m.l
	order := make([]Inode, len(l.inodes))
	for k := range order {
		order[k] = Inode(k)
	}
	slices.SortFunc(order, func(a, b Inode) int {
		return int(int64(l.inodes[a].nid) - int64(l.inodes[b].nid))
	})
	for _, i := range order {
		if err := m.pad(l.address(i)); err != nil {
			return err
		}
		if err := m.writeInode(i); err != nil {
			return err
		}
	}
	return nil
}

func (m *metaWriter) writeInode(i Inode) error {
	l := m.l
	n, p := &l.t.inodes[i], &l.inodes[i]
	d := diskInode{
		Format: p.format, XattrCount: xattrCount(int(p.body)), Mode: n.mode, Size: uint64(l.contentSize(i)),
		U: p.start, Ino: uint32(i) + 1, UID: n.uid, GID: n.gid, Mtime: n.mtime, MtimeNsec: n.nsec, Nlink: n.nlink,
	}
	switch n.mode & modeType {
	case modeDir, modeLink:
		if p.start != nullBlock {
			d.U = p.start + uint32(l.dirBase/l.block)
		}
	case modeReg:
		if p.chunks == 0 && n.size > 0 {
			first, err := m.relocate(l.t.Extents(i)[0].Addr, n.size)
			if err != nil {
				return err
			}
			d.U = first
		}
	}
	m.buf = append(m.buf[:0], zeros[:d.size()]...)
	d.put(m.buf)
	m.buf = l.xattrs.appendBody(m.buf, l.t, n, uint32(l.sharedBase%l.block/4))
	if p.chunks > 0 {
		return m.writeChunks(i)
	}
	if p.tail == 0 {
		return m.write(m.buf)
	}
	if n.mode&modeType == modeLink {
		return m.write(append(m.buf, l.t.Target(i)...))
	}
	return m.writeTail(i)
}

// writeTail writes the inode in m.buf and the last block of its directory.
func (m *metaWriter) writeTail(i Inode) error {
	if err := m.write(m.buf); err != nil {
		return err
	}
	return m.l.dirBlocks(i, func(b []byte, last bool) error {
		if !last {
			return nil
		}
		return m.write(b)
	})
}

// writeChunks writes the inode in m.buf and its chunk map.
func (m *metaWriter) writeChunks(i Inode) error {
	l := m.l
	n, p := &l.t.inodes[i], &l.inodes[i]
	m.buf = append(m.buf, zeros[:alignUp(len(m.buf), chunkIndexSize)-len(m.buf)]...)
	chunk := l.block << (p.start & chunkBitsMask)
	exts := l.t.Extents(i)
	for k := range int64(p.chunks) {
		off := k * chunk
		for exts[0].Off+exts[0].Len <= off {
			exts = exts[1:]
		}
		c := chunkIndex{Block: nullBlock}
		if e := exts[0]; e.Addr != HoleAddr {
			c.Device, c.Block = e.Device, uint32((e.Addr+off-e.Off)/l.block)
			if e.Device == 0 {
				var err error
				if c.Block, err = m.relocate(e.Addr+off-e.Off, min(e.Len-(off-e.Off), n.size-off)); err != nil {
					return err
				}
			}
		}
		m.buf = append(m.buf, zeros[:chunkIndexSize]...)
		c.put(m.buf[len(m.buf)-chunkIndexSize:])
		if len(m.buf) >= 64<<10 {
			if err := m.write(m.buf); err != nil {
				return err
			}
			m.buf = m.buf[:0]
		}
	}
	return m.write(m.buf)
}

// relocate turns an address in the data area into a block of the image.
func (m *metaWriter) relocate(addr, size int64) (uint32, error) {
	at := m.l.metaSize + addr
	if end := at + size; end > m.blocks*m.l.block {
		return 0, fmt.Errorf("file data at [%d, %d) of the image, which ends at %d: %w", at, end, m.blocks*m.l.block, fs.ErrInvalid)
	}
	return uint32(at / m.l.block), nil
}

// writeBlocks writes what of a directory or a link is not inline.
func (m *metaWriter) writeBlocks(i Inode) error {
	l := m.l
	n, p := &l.t.inodes[i], &l.inodes[i]
	kind := n.mode & modeType
	if kind != modeDir && kind != modeLink || p.start == nullBlock {
		return nil
	}
	if err := m.pad(l.dirBase + int64(p.start)*l.block); err != nil {
		return err
	}
	if kind == modeLink {
		return m.write(l.t.Target(i))
	}
	return l.dirBlocks(i, func(b []byte, last bool) error {
		if last && p.tail > 0 {
			return nil
		}
		return m.write(b)
	})
}
