package erofs

import (
	"encoding/binary"
	"hash/crc32"
)

// The on-disk format, as include/uapi and fs/erofs/erofs_fs.h of Linux define
// it. Everything is little endian. Only what uncompressed images need is here.

// Where the superblock is and how it begins.
const (
	superOffset = 1024
	superSize   = 128
	superMagic  = 0xE0F5E1E2
	slotSize    = 128 // of the device table, whose first slot is number devt_slotoff
	// firstFreeSlot is the first 128-byte slot behind the superblock.
	firstFreeSlot = (superOffset + superSize) / slotSize
)

// Compatible features: a kernel that does not know one ignores it.
const (
	compatChecksum    = 0x01 // the superblock's checksum field holds
	compatMtime       = 0x02 // inode times are modification times
	compatXattrFilter = 0x04 // xattr bodies carry a Bloom filter (6.6)
)

// Incompatible features: a kernel that does not know one refuses the mount.
const (
	incompatChunked = 0x04 // chunk-based inodes (5.15)
	incompatDevices = 0x08 // a device table (5.16)
)

// Inode sizes, data layouts and the other bits of i_format.
const (
	compactSize  = 32
	extendedSize = 64
	nidShift     = 5 // inodes begin at multiples of 32 bytes

	formatExtended    = 0x01
	formatLayoutShift = 1
	formatLayoutMask  = 0x07
	formatKnown       = formatExtended | formatLayoutMask<<formatLayoutShift

	layoutPlain  = 0 // u is the first block
	layoutInline = 2 // as plain, but the last block's bytes follow the xattrs
	layoutChunks = 4 // u is the chunk format; a chunk map follows the xattrs
)

// Chunk format (the low 16 bits of u of a chunk-based inode), and the map.
const (
	chunkBitsMask  = 0x1f // log2(chunk size / block size)
	chunkIndexes   = 0x20 // 8-byte indexes with a device, else 4-byte blocks
	chunkKnown     = chunkBitsMask | chunkIndexes
	chunkIndexSize = 8
	chunkBlockSize = 4
	// nullBlock is the address of a hole, and u of an inode without blocks.
	nullBlock = 0xFFFFFFFF
)

// Directory entries and the types they carry.
const (
	direntSize = 12
	maxName    = 255

	ftReg     = 1
	ftDir     = 2
	ftChar    = 3
	ftBlock   = 4
	ftFifo    = 5
	ftSocket  = 6
	ftSymlink = 7
)

// Extended attributes.
const (
	xattrHeaderSize = 12 // filter u32, shared count u8, 7 reserved bytes
	xattrEntrySize  = 4  // name length u8, index u8, value length u16
	xattrAlign      = 4
	maxXattrSuffix  = 255
	maxXattrValue   = 65535
	maxXattrShared  = 255 // the count is one byte
	// maxXattrBody is what i_xattr_icount can say: 12 + 4*(65535-1).
	maxXattrBody = xattrHeaderSize + 4*(65535-1)

	xattrIndexUser       = 1
	xattrIndexACLAccess  = 2
	xattrIndexACLDefault = 3
	xattrIndexTrusted    = 4
	xattrIndexSecurity   = 6

	xattrFilterSeed = 0x25BBE08F
)

// xattrPrefix is one entry of the table of name prefixes. An exact one is a
// whole name: its entries on disk have an empty suffix.
type xattrPrefix struct {
	index  uint8
	prefix string
	exact  bool
}

var xattrPrefixes = []xattrPrefix{
	{xattrIndexUser, "user.", false},
	{xattrIndexACLAccess, XattrACLAccess, true},
	{xattrIndexACLDefault, XattrACLDefault, true},
	{xattrIndexTrusted, "trusted.", false},
	{xattrIndexSecurity, "security.", false},
}

// splitXattr splits a full name into prefix index and suffix. It is false for
// a name that the format has no index for, and for a bare prefix.
func splitXattr[T string | []byte](name T) (index uint8, suffix T, ok bool) {
	for _, p := range xattrPrefixes {
		n := len(p.prefix)
		if len(name) < n || string(name[:n]) != p.prefix {
			continue
		}
		if p.exact == (len(name) == n) {
			return p.index, name[n:], true
		}
	}
	return 0, suffix, false
}

// xattrPrefixOf returns the prefix of an index, or "" for an unknown one.
func xattrPrefixOf(index uint8) (prefix string, exact bool) {
	for _, p := range xattrPrefixes {
		if p.index == index {
			return p.prefix, p.exact
		}
	}
	return "", false
}

// superblock holds the fields of the superblock that plain images use. The
// rest must be zero; a parser checks that on the raw bytes.
type superblock struct {
	Checksum       uint32
	Compat         uint32
	BlockBits      uint8
	ExtSlots       uint8
	RootNid        uint16
	Inodes         uint64
	Epoch          int64
	EpochNsec      uint32
	Blocks         uint32
	MetaBlock      uint32
	XattrBlock     uint32
	UUID           [16]byte
	Volume         [16]byte
	Incompat       uint32
	ComprAlgs      uint16
	Devices        uint16
	DeviceSlot     uint16
	DirBlockBits   uint8
	PrefixCount    uint8
	PrefixStart    uint32
	PackedNid      uint64
	FilterReserved uint8
	BuildTime      uint32
}

// put encodes s, magic included, into the superSize bytes at b.
func (s *superblock) put(b []byte) {
	le := binary.LittleEndian
	clear(b[:superSize])
	le.PutUint32(b[0:], superMagic)
	le.PutUint32(b[4:], s.Checksum)
	le.PutUint32(b[8:], s.Compat)
	b[12], b[13] = s.BlockBits, s.ExtSlots
	le.PutUint16(b[14:], s.RootNid)
	le.PutUint64(b[16:], s.Inodes)
	le.PutUint64(b[24:], uint64(s.Epoch))
	le.PutUint32(b[32:], s.EpochNsec)
	le.PutUint32(b[36:], s.Blocks)
	le.PutUint32(b[40:], s.MetaBlock)
	le.PutUint32(b[44:], s.XattrBlock)
	copy(b[48:64], s.UUID[:])
	copy(b[64:80], s.Volume[:])
	le.PutUint32(b[80:], s.Incompat)
	le.PutUint16(b[84:], s.ComprAlgs)
	le.PutUint16(b[86:], s.Devices)
	le.PutUint16(b[88:], s.DeviceSlot)
	b[90], b[91] = s.DirBlockBits, s.PrefixCount
	le.PutUint32(b[92:], s.PrefixStart)
	le.PutUint64(b[96:], s.PackedNid)
	b[104] = s.FilterReserved
	le.PutUint32(b[108:], s.BuildTime)
}

// getSuper decodes the superSize bytes at b; ok says whether the magic holds.
func getSuper(b []byte) (s superblock, ok bool) {
	le := binary.LittleEndian
	s = superblock{
		Checksum: le.Uint32(b[4:]), Compat: le.Uint32(b[8:]),
		BlockBits: b[12], ExtSlots: b[13], RootNid: le.Uint16(b[14:]),
		Inodes: le.Uint64(b[16:]),
		Epoch:  int64(le.Uint64(b[24:])), EpochNsec: le.Uint32(b[32:]),
		Blocks: le.Uint32(b[36:]), MetaBlock: le.Uint32(b[40:]), XattrBlock: le.Uint32(b[44:]),
		UUID: [16]byte(b[48:64]), Volume: [16]byte(b[64:80]),
		Incompat: le.Uint32(b[80:]), ComprAlgs: le.Uint16(b[84:]),
		Devices: le.Uint16(b[86:]), DeviceSlot: le.Uint16(b[88:]),
		DirBlockBits: b[90], PrefixCount: b[91], PrefixStart: le.Uint32(b[92:]),
		PackedNid: le.Uint64(b[96:]), FilterReserved: b[104], BuildTime: le.Uint32(b[108:]),
	}
	return s, le.Uint32(b) == superMagic
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// superChecksumLen is how many bytes from superOffset on the checksum covers:
// to the end of the first block, or one block where a block is no longer than
// superOffset.
func superChecksumLen(blockBits uint8) int {
	if n := 1 << blockBits; n > superOffset {
		return n - superOffset
	}
	return 1 << blockBits
}

// superChecksum is CRC-32C without the final inversion over b, which begins at
// superOffset, is superChecksumLen long and has a zero in the checksum field.
func superChecksum(b []byte) uint32 { return ^crc32.Checksum(b, castagnoli) }

// deviceSlot is one record of the device table.
type deviceSlot struct {
	Tag     [64]byte
	Blocks  uint64 // 48 bits; the high 16 are read by Linux 7.1 and later only
	UniAddr uint64 // first block in the flat address space; 48 bits likewise
}

func (d *deviceSlot) put(b []byte) {
	le := binary.LittleEndian
	clear(b[:slotSize])
	copy(b, d.Tag[:])
	le.PutUint32(b[64:], uint32(d.Blocks))
	le.PutUint32(b[68:], uint32(d.UniAddr))
	le.PutUint16(b[72:], uint16(d.Blocks>>32))
	le.PutUint16(b[74:], uint16(d.UniAddr>>32))
}

func getDeviceSlot(b []byte) (d deviceSlot) {
	le := binary.LittleEndian
	d.Tag = [64]byte(b[:64])
	d.Blocks = uint64(le.Uint32(b[64:])) | uint64(le.Uint16(b[72:]))<<32
	d.UniAddr = uint64(le.Uint32(b[68:])) | uint64(le.Uint16(b[74:]))<<32
	return d
}

// diskInode holds the fields of both inode forms.
type diskInode struct {
	Format      uint16
	XattrCount  uint16 // see xattrBodySize
	Mode        uint16
	Size        uint64
	U           uint32 // first block, device number or chunk format
	Ino         uint32 // for 32-bit stat only
	UID, GID    uint32
	Mtime       int64 // extended form only
	MtimeNsec   uint32
	Nlink       uint32
	CompactTime uint32 // compact form only: seconds after the epoch, 6.15 and later
}

func (n *diskInode) extended() bool { return n.Format&formatExtended != 0 }

func (n *diskInode) layout() uint8 { return uint8(n.Format>>formatLayoutShift) & formatLayoutMask }

// size is the length of the inode itself, without xattrs and map.
func (n *diskInode) size() int {
	if n.extended() {
		return extendedSize
	}
	return compactSize
}

// put encodes n into the n.size() bytes at b.
func (n *diskInode) put(b []byte) {
	le := binary.LittleEndian
	le.PutUint16(b[0:], n.Format)
	le.PutUint16(b[2:], n.XattrCount)
	le.PutUint16(b[4:], n.Mode)
	le.PutUint32(b[16:], n.U)
	le.PutUint32(b[20:], n.Ino)
	if !n.extended() {
		le.PutUint16(b[6:], uint16(n.Nlink))
		le.PutUint32(b[8:], uint32(n.Size))
		le.PutUint32(b[12:], n.CompactTime)
		le.PutUint16(b[24:], uint16(n.UID))
		le.PutUint16(b[26:], uint16(n.GID))
		le.PutUint32(b[28:], 0)
		return
	}
	le.PutUint16(b[6:], 0)
	le.PutUint64(b[8:], n.Size)
	le.PutUint32(b[24:], n.UID)
	le.PutUint32(b[28:], n.GID)
	le.PutUint64(b[32:], uint64(n.Mtime))
	le.PutUint32(b[40:], n.MtimeNsec)
	le.PutUint32(b[44:], n.Nlink)
	clear(b[48:extendedSize])
}

// getInode decodes an inode. b must hold compactSize bytes, and extendedSize
// when the low bit of b[0] is set.
func getInode(b []byte) (n diskInode) {
	le := binary.LittleEndian
	n.Format, n.XattrCount, n.Mode = le.Uint16(b), le.Uint16(b[2:]), le.Uint16(b[4:])
	n.U, n.Ino = le.Uint32(b[16:]), le.Uint32(b[20:])
	if !n.extended() {
		n.Nlink, n.Size = uint32(le.Uint16(b[6:])), uint64(le.Uint32(b[8:]))
		n.CompactTime = le.Uint32(b[12:])
		n.UID, n.GID = uint32(le.Uint16(b[24:])), uint32(le.Uint16(b[26:]))
		return n
	}
	n.Size = le.Uint64(b[8:])
	n.UID, n.GID = le.Uint32(b[24:]), le.Uint32(b[28:])
	n.Mtime, n.MtimeNsec = int64(le.Uint64(b[32:])), le.Uint32(b[40:])
	n.Nlink = le.Uint32(b[44:])
	return n
}

// xattrBodySize is the length of the xattr body that i_xattr_icount announces.
// A count of 1, a bare header, is not valid: the kernel refuses the inode.
func xattrBodySize(icount uint16) int {
	if icount == 0 {
		return 0
	}
	return xattrHeaderSize + 4*(int(icount)-1)
}

// xattrCount is the inverse of xattrBodySize.
func xattrCount(body int) uint16 {
	if body == 0 {
		return 0
	}
	return uint16((body-xattrHeaderSize)/4 + 1)
}

// chunkIndex is where one chunk is.
type chunkIndex struct {
	Device uint16
	Block  uint32 // nullBlock: a hole
	// BlockHi belongs to 48-bit images; zero, or all ones in a hole.
	BlockHi uint16
}

func (c chunkIndex) put(b []byte) {
	binary.LittleEndian.PutUint16(b, c.BlockHi)
	binary.LittleEndian.PutUint16(b[2:], c.Device)
	binary.LittleEndian.PutUint32(b[4:], c.Block)
}

// getChunk decodes an entry of either width.
func getChunk(b []byte) chunkIndex {
	le := binary.LittleEndian
	if len(b) == chunkBlockSize {
		return chunkIndex{Block: le.Uint32(b)}
	}
	return chunkIndex{BlockHi: le.Uint16(b), Device: le.Uint16(b[2:]), Block: le.Uint32(b[4:])}
}

// diskDirent is the fixed part of a directory entry.
type diskDirent struct {
	Nid     uint64
	NameOff uint16 // from the start of the block
	Type    uint8
}

func (d diskDirent) put(b []byte) {
	binary.LittleEndian.PutUint64(b, d.Nid)
	binary.LittleEndian.PutUint16(b[8:], d.NameOff)
	b[10], b[11] = d.Type, 0
}

func getDirent(b []byte) diskDirent {
	le := binary.LittleEndian
	return diskDirent{Nid: le.Uint64(b), NameOff: le.Uint16(b[8:]), Type: b[10]}
}

// alignUp rounds n up to a multiple of a, a power of two.
func alignUp[T int | int64 | uint64](n, a T) T { return (n + a - 1) &^ (a - 1) }
