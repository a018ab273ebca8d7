package erofs

import (
	"bytes"
	"errors"
	"math"
)

// Features that the writer uses. What else there is either belongs to
// compression, fragments, 48-bit images or metadata boxes, or changes how
// extended attributes are named or shared.
const (
	allowedCompat   = compatChecksum | compatMtime | compatXattrFilter
	requiredCompat  = compatChecksum | compatMtime
	allowedIncompat = incompatChunked | incompatDevices
)

// readSuper reads and checks the superblock and the device table.
func (s *parser) readSuper() error {
	if s.policy.ImageSize < superOffset+superSize {
		return refuse(RuleSize, 0, "%d bytes are too few for an EROFS image", s.policy.ImageSize)
	}
	b, err := s.meta.view(superOffset, superSize)
	if err != nil {
		return err
	}
	var ok bool
	if s.super, ok = getSuper(b); !ok {
		return refuse(RuleSuperblock, superOffset, "no EROFS magic number")
	}
	// Whatever the structure does not hold must be zero.
	var again [superSize]byte
	s.super.put(again[:])
	if k := mismatch(b, again[:]); k >= 0 {
		return refuse(RuleSuperblock, superOffset+int64(k), "a reserved byte is not zero")
	}
	if err := s.checkFeatures(); err != nil {
		return err
	}
	s.block = 1 << s.super.BlockBits
	if err := s.checkChecksum(); err != nil {
		return err
	}
	if want := alignUp(s.policy.ImageSize, s.block) / s.block; int64(s.super.Blocks) != want {
		return refuse(RuleSize, superOffset, "the superblock announces %d blocks, the image has %d", s.super.Blocks, want)
	}
	if int64(s.super.MetaBlock) >= int64(s.super.Blocks) || s.super.XattrBlock > s.super.Blocks {
		return refuse(RuleBounds, superOffset, "metadata begins at block %d and shared attributes at %d, the image has %d",
			s.super.MetaBlock, s.super.XattrBlock, s.super.Blocks)
	}
	if s.super.Inodes == 0 || s.super.Inodes > uint64(s.policy.MaxInodes) {
		return refuse(RuleLimit, superOffset, "%d inodes, %d are allowed", s.super.Inodes, s.policy.MaxInodes)
	}
	if s.super.EpochNsec >= 1e9 || s.super.Epoch > math.MaxInt64-math.MaxUint32 {
		return refuse(RuleSuperblock, superOffset, "the epoch is %d s %d ns", s.super.Epoch, s.super.EpochNsec)
	}
	return s.readDevices()
}

func (s *parser) checkFeatures() error {
	u := &s.super
	switch {
	case u.Compat&^allowedCompat != 0:
		return refuse(RuleFeatures, superOffset, "compatible features %#x, at most %#x are allowed", u.Compat, allowedCompat)
	case u.Compat&requiredCompat != requiredCompat:
		return refuse(RuleFeatures, superOffset, "compatible features %#x, a checksum and modification times are required", u.Compat)
	case u.Incompat&^allowedIncompat != 0:
		return refuse(RuleFeatures, superOffset, "features %#x, at most %#x are allowed", u.Incompat, allowedIncompat)
	case u.BlockBits < 9 || u.BlockBits > 12:
		return refuse(RuleFeatures, superOffset, "blocks of 2^%d bytes, 2^9 to 2^12 are allowed", u.BlockBits)
	case u.DirBlockBits != 0 || u.ExtSlots != 0:
		return refuse(RuleFeatures, superOffset, "directory block bits %d and %d extra superblock slots, none are allowed", u.DirBlockBits, u.ExtSlots)
	case u.ComprAlgs != 0 || u.PackedNid != 0:
		return refuse(RuleFeatures, superOffset, "compression algorithms %#x, packed inode %d: compressed data is not allowed", u.ComprAlgs, u.PackedNid)
	case u.PrefixCount != 0 || u.PrefixStart != 0 || u.FilterReserved != 0:
		return refuse(RuleFeatures, superOffset, "long attribute prefixes or a changed attribute filter are not allowed")
	}
	return nil
}

// checkChecksum reads the rest of the superblock's block for itself: an image
// shorter than that block is zero there for the kernel.
func (s *parser) checkChecksum() error {
	n := int64(superChecksumLen(s.super.BlockBits))
	b, err := s.meta.view(superOffset, n)
	var refused *RefusedError
	if errors.As(err, &refused) {
		return refuse(RuleSize, superOffset, "the image ends within its first block")
	}
	if err != nil {
		return err
	}
	b = bytes.Clone(b)
	clear(b[4:8])
	if sum := superChecksum(b); sum != s.super.Checksum {
		return refuse(RuleChecksum, superOffset, "the superblock's checksum is %#08x, its bytes give %#08x", s.super.Checksum, sum)
	}
	return s.meta.claim(0, superOffset+superSize, false)
}

func (s *parser) readDevices() error {
	u := &s.super
	if int(u.Devices) != len(s.policy.Devices) {
		return refuse(RuleDevices, superOffset, "%d extra devices, %d are expected", u.Devices, len(s.policy.Devices))
	}
	if (u.Devices > 0) != (u.Incompat&incompatDevices != 0) {
		return refuse(RuleDevices, superOffset, "%d extra devices do not go with features %#x", u.Devices, u.Incompat)
	}
	if u.Devices == 0 {
		if u.DeviceSlot != 0 {
			return refuse(RuleDevices, superOffset, "a device table in slot %d, and no devices", u.DeviceSlot)
		}
		return nil
	}
	off, size := int64(u.DeviceSlot)*slotSize, int64(u.Devices)*slotSize
	b, err := s.meta.view(off, size)
	if err != nil {
		return err
	}
	if err := s.meta.claim(off, size, false); err != nil {
		return err
	}
	next := uint64(u.Blocks)
	for k := range int(u.Devices) {
		d := getDeviceSlot(b[k*slotSize:])
		var again [slotSize]byte
		d.put(again[:])
		at := off + int64(k)*slotSize
		if m := mismatch(b[k*slotSize:], again[:]); m >= 0 {
			return refuse(RuleDevices, at+int64(m), "a reserved byte of device %d is not zero", k+1)
		}
		if err := s.checkDevice(at, k, d, &next); err != nil {
			return err
		}
	}
	return nil
}

// checkDevice binds slot k to the device that the policy expects there. Its
// place in the flat address space must be behind the primary device and the
// devices before it: the kernel redirects the primary device's addresses by it.
func (s *parser) checkDevice(at int64, k int, d deviceSlot, next *uint64) error {
	want := s.policy.Devices[k]
	tag := string(bytes.TrimRight(d.Tag[:], "\x00"))
	switch {
	case want.Tag != "" && tag != want.Tag:
		return refuse(RuleDevices, at, "device %d has the tag %q, %q is expected", k+1, tag, want.Tag)
	case d.Blocks != want.Blocks:
		return refuse(RuleDevices, at, "device %d has %d blocks, %d are expected", k+1, d.Blocks, want.Blocks)
	case d.Blocks >= nullBlock:
		return refuse(RuleDevices, at, "device %d has %d blocks, kernels before 7.1 read 32 bits", k+1, d.Blocks)
	case d.UniAddr != 0 && (d.UniAddr < *next || d.UniAddr+d.Blocks > nullBlock):
		return refuse(RuleDevices, at, "device %d lies at block %d of the flat address space, in another device or beyond its end", k+1, d.UniAddr)
	}
	if d.UniAddr != 0 {
		*next = d.UniAddr + d.Blocks
	}
	s.devices = append(s.devices, Device{Tag: tag, Blocks: d.Blocks})
	return nil
}

// mismatch returns the index of the first byte of want that b differs in, or -1.
func mismatch(b, want []byte) int {
	for k := range want {
		if b[k] != want[k] {
			return k
		}
	}
	return -1
}
