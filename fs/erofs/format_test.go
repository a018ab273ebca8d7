package erofs

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
)

// Each structure keeps every field through encoding and decoding.
func TestFormatRoundTrip(t *testing.T) {
	b := bytes.Repeat([]byte{0xAA}, 128)
	s := superblock{
		Checksum: 1, Compat: 2, BlockBits: 12, ExtSlots: 3, RootNid: 4, Inodes: 1 << 40, Epoch: -5,
		EpochNsec: 6, Blocks: 7, MetaBlock: 8, XattrBlock: 9, UUID: [16]byte{10}, Volume: [16]byte{11},
		Incompat: 12, ComprAlgs: 13, Devices: 14, DeviceSlot: 15, DirBlockBits: 16, PrefixCount: 17,
		PrefixStart: 18, PackedNid: 1 << 41, FilterReserved: 19, BuildTime: 20,
	}
	s.put(b)
	got, ok := getSuper(b)
	require.True(t, ok)
	require.Equal(t, s, got)
	b[0]++
	_, ok = getSuper(b)
	require.False(t, ok)

	d := deviceSlot{Tag: [64]byte{1, 63: 2}, Blocks: 1<<47 + 3, UniAddr: 1<<46 + 4}
	d.put(b)
	require.Equal(t, d, getDeviceSlot(b))

	for _, n := range []diskInode{
		{Format: layoutInline << formatLayoutShift, XattrCount: 1, Mode: 2, Size: 3, U: 4, Ino: 5, UID: 6, GID: 7, Nlink: 8, CompactTime: 9},
		{
			Format: formatExtended | layoutChunks<<formatLayoutShift, XattrCount: 1, Mode: 2, Size: 1 << 40, U: 4, Ino: 5,
			UID: 1 << 20, GID: 1 << 21, Mtime: -7, MtimeNsec: 8, Nlink: 1 << 22,
		},
	} {
		n.put(b)
		require.Equal(t, n, getInode(b))
	}
	c := chunkIndex{Device: 1, Block: 2, BlockHi: 3}
	c.put(b)
	require.Equal(t, c, getChunk(b))
	e := diskDirent{Nid: 1 << 50, NameOff: 12, Type: 7}
	e.put(b)
	require.Equal(t, e, getDirent(b))
}

func TestXattrPrefixes(t *testing.T) {
	for _, c := range []struct {
		name   string
		index  uint8
		suffix string
		ok     bool
	}{
		{"user.a", 1, "a", true},
		{"user.", 0, "", false},
		{"user", 0, "", false},
		{"trusted.overlay.opaque", 4, "overlay.opaque", true},
		{"security.selinux", 6, "selinux", true},
		{"system.posix_acl_access", 2, "", true},
		{"system.posix_acl_default", 3, "", true},
		{"system.posix_acl_accessx", 0, "", false},
		{"system.nfs4_acl", 0, "", false},
		{"", 0, "", false},
	} {
		index, suffix, ok := splitXattr(c.name)
		require.Equal(t, c.ok, ok, c.name)
		require.Equal(t, c.index, index, c.name)
		require.Equal(t, c.suffix, suffix, c.name)
		if ok {
			p, _ := xattrPrefixOf(index)
			require.Equal(t, c.name, p+suffix)
		}
	}
}

func TestXattrCount(t *testing.T) {
	for _, body := range []int{0, 16, 20, maxXattrBody} {
		require.Equal(t, body, xattrBodySize(xattrCount(body)))
	}
}

func TestSuperChecksumLen(t *testing.T) {
	require.Equal(t, []int{512, 1024, 1024, 3072},
		[]int{superChecksumLen(9), superChecksumLen(10), superChecksumLen(11), superChecksumLen(12)})
}
