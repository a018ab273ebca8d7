package fusetree

import (
	"bytes"
	"math"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// FuzzRead lays a file out over two layers as layout says, two bits for each of
// its blocks, and reads it anywhere: what is read, what is said to be resident and
// where data and holes are must agree with what was laid out.
func FuzzRead(f *testing.F) {
	f.Add([]byte{}, uint16(0), uint64(1), uint64(0), uint32(1))
	f.Add([]byte{0x1b, 0xe4}, uint16(100), uint64(1), uint64(4096), uint32(20000))
	f.Add([]byte{0xff, 0x00, 0x55}, uint16(4095), uint64(2), uint64(math.MaxUint64), uint32(math.MaxUint32))
	dir := f.TempDir()
	img := drivertest.NewImage(f, 7, false)
	var layers []driver.Layer
	for _, id := range []string{"a", "b"} {
		l := drivertest.NewLayer(f, dir, id, img)
		f.Cleanup(func() { _ = l.Close() })
		layers = append(layers, l)
	}
	f.Fuzz(func(t *testing.T, layout []byte, tail uint16, node, off uint64, n uint32) {
		if len(layout) > 64 {
			return
		}
		exts, want := layOut(layout, int64(tail%4096), img.Data)
		b := erofs.NewBuilder()
		i, err := b.Put("f", erofs.Attr{Mode: unix.S_IFREG | 0o644, Size: int64(len(want))})
		require.NoError(t, err)
		b.SetExtents(i, exts)
		tr, err := b.Tree()
		require.NoError(t, err)
		blocks := uint64(len(img.Data)+4095) / 4096
		s, err := writtenTree(tr, erofs.WriteOptions{Devices: []erofs.Device{{Blocks: blocks}, {Blocks: blocks}}}, append([]driver.Layer{nil}, layers...), newCounters())
		require.NoError(t, err)
		defer s.close()
		file := nodeOf(t, s, "f")
		checkRead(t, s, want, file, node, off, int(n%(1<<20)))
		checkRead(t, s, want, file, file, off%uint64(len(want)+1), int(n%uint32(len(want)+5000)))
		for _, whence := range []uint32{unix.SEEK_DATA, unix.SEEK_HOLE, unix.SEEK_SET} {
			var out fuse.LseekOut
			st := s.Lseek(nil, &fuse.LseekIn{InHeader: fuse.InHeader{NodeId: file}, Offset: off, Whence: whence}, &out)
			if st == fuse.OK && (out.Offset < off || out.Offset > uint64(len(want))) {
				t.Fatalf("seeking from %d found %d of %d", off, out.Offset, len(want))
			}
		}
	})
}

// layOut makes extents of two bits each: a hole, or a block of device 1 or 2,
// neighbours or not.
func layOut(layout []byte, tail int64, data []byte) (exts []erofs.Extent, want []byte) {
	at := int64(0)
	for k := range 4 * len(layout) {
		e := erofs.Extent{Off: int64(len(want)), Len: 4096, Addr: erofs.HoleAddr}
		if k == 4*len(layout)-1 && tail > 0 {
			e.Len = tail
		}
		bits := layout[k/4] >> (2 * (k % 4)) & 3
		if bits > 0 {
			e.Device = uint16(bits+1) / 2
			if at += 4096; bits == 3 {
				at += 8192
			}
			e.Addr = at % int64(len(data)-4096) &^ 4095
			want = append(want, data[e.Addr:e.Addr+e.Len]...)
		} else {
			want = append(want, make([]byte, e.Len)...)
		}
		exts = append(exts, e)
	}
	return exts, want
}

// nodeOf is what the kernel knows a file of the root as.
func nodeOf(t *testing.T, s *tree, name string) uint64 {
	var out fuse.EntryOut
	require.Equal(t, fuse.OK, s.Lookup(nil, &fuse.InHeader{NodeId: 1}, name, &out))
	require.NotZero(t, out.NodeId, name)
	return out.NodeId
}

func checkRead(t *testing.T, s *tree, want []byte, file, node, off uint64, n int) {
	fd, at, length, resident := s.Resident(node, int64(off), n)
	buf := make([]byte, n)
	res, st := s.Read(nil, &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: node}, Offset: off, Size: uint32(n)}, buf)
	if node != 1 && node != file {
		return // what no kernel asks must only do no harm
	}
	if st != fuse.OK {
		t.Fatalf("reading node %d at %d: %v", node, off, st)
	}
	got, _ := res.Bytes(nil)
	expect := []byte{}
	if node == file && off < uint64(len(want)) {
		expect = want[off:min(uint64(len(want)), off+uint64(n))]
	}
	if !bytes.Equal(expect, got) {
		t.Fatalf("%d bytes at %d of %d: %d other bytes", n, off, len(want), len(got))
	}
	if resident {
		b := make([]byte, length)
		if _, err := unix.Pread(fd, b, at); err != nil || !bytes.Equal(expect, b) {
			t.Fatalf("what is resident at %d is %d other bytes (%v)", at, len(b), err)
		}
	}
}

// The hot path.
func TestAResidentReadAllocatesNothing(t *testing.T) {
	l := drivertest.NewLayer(t, t.TempDir(), "l", buildLayer(t, file("f", "0123456789")))
	defer func() { require.NoError(t, l.Close()) }()
	require.NoError(t, l.Fill(t.Context()))
	r := newRig(t, Config{})
	s, err := r.driver.layerTree(l)
	require.NoError(t, err)
	file := nodeOf(t, s, "f")
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if _, _, n, ok := s.Resident(file, 2, 100); !ok || n != 8 {
			t.Fatal(n, ok)
		}
	}))
	for _, node := range []uint64{0, 1, 3, math.MaxUint64} {
		_, _, _, ok := s.Resident(node, 0, 1)
		require.False(t, ok, "%d", node)
	}
}

// What a kernel that is out of its mind might ask.
func TestUnknownNodes(t *testing.T) {
	r := newRig(t, Config{})
	l := r.layer("l", buildLayer(t, file("f", "x")))
	s, err := r.driver.layerTree(l)
	require.NoError(t, err)
	for _, node := range []uint64{0, 3, math.MaxUint64} {
		h := fuse.InHeader{NodeId: node}
		require.Equal(t, stale, s.Lookup(nil, &h, "f", &fuse.EntryOut{}))
		require.Equal(t, stale, s.GetAttr(nil, &fuse.GetAttrIn{InHeader: h}, &fuse.AttrOut{}))
		_, st := s.Readlink(nil, &h)
		require.Equal(t, stale, st)
		_, st = s.GetXAttr(nil, &h, "user.x", nil)
		require.Equal(t, stale, st)
		_, st = s.ListXAttr(nil, &h, nil)
		require.Equal(t, stale, st)
		_, st = s.Read(nil, &fuse.ReadIn{InHeader: h}, nil)
		require.Equal(t, stale, st)
		require.Equal(t, stale, s.Lseek(nil, &fuse.LseekIn{InHeader: h}, &fuse.LseekOut{}))
		list := fuse.NewDirEntryList(make([]byte, 4096), 0)
		require.Equal(t, stale, s.ReadDir(nil, &fuse.ReadIn{InHeader: h}, list))
	}
	_, st := s.Readlink(nil, &fuse.InHeader{NodeId: nodeOf(t, s, "f")})
	require.Equal(t, fuse.EINVAL, st)
	list := fuse.NewDirEntryList(make([]byte, 4096), 0)
	require.Equal(t, fuse.OK, s.ReadDir(nil, &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: 1}, Offset: math.MaxUint64}, list))
	require.Empty(t, list.Bytes())
	s.context = t.Context
	var out fuse.OpenOut
	require.Equal(t, fuse.OK, s.Open(nil, &fuse.OpenIn{}, &out))
	require.Equal(t, uint32(fuse.FOPEN_KEEP_CACHE), out.OpenFlags)
	require.Equal(t, fuse.OK, s.OpenDir(nil, &fuse.OpenIn{}, &out))
}
