package erofs

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var updateGolden = flag.Bool("update", false, "write the digests of golden images to testdata")

// oneFile returns a tree with a regular file of that size and extents.
func oneFile(t *testing.T, size int64, e ...Extent) *Tree {
	t.Helper()
	b := NewBuilder()
	i, err := b.Put("f", Attr{Mode: modeReg, Size: size})
	require.NoError(t, err)
	b.SetExtents(i, e)
	tree, err := b.Tree()
	require.NoError(t, err)
	return tree
}

func TestLayoutRefuses(t *testing.T) {
	dev := WriteOptions{Devices: []Device{{Blocks: 2}}}
	for name, c := range map[string]struct {
		size int64
		exts []Extent
		o    WriteOptions
	}{
		"nothing":         {size: 1},
		"short":           {size: 8192, exts: []Extent{{Len: 4096}}},
		"long":            {size: 4096, exts: []Extent{{Len: 4097}}},
		"gap":             {size: 12288, exts: []Extent{{Len: 4096}, {Off: 8192, Len: 4096}}},
		"overlap":         {size: 8192, exts: []Extent{{Len: 8192}, {Off: 4096, Len: 4096}}},
		"unaligned start": {size: 8192, exts: []Extent{{Len: 100}, {Off: 100, Len: 8092}}},
		"unaligned addr":  {size: 8192, exts: []Extent{{Len: 8192, Addr: 512}}},
		"negative addr":   {size: 8192, exts: []Extent{{Len: 8192, Addr: -4096}}},
		"empty extent":    {size: 1, exts: []Extent{{}, {Len: 1}}},
		"after the end":   {size: 0, exts: []Extent{{Len: 1}}},
		"no such device":  {size: 1, exts: []Extent{{Len: 1, Device: 1}}},
		"end of device":   {size: 4097, exts: []Extent{{Len: 4097, Device: 1, Addr: 4096}}, o: dev},
		"over 32 bits":    {size: 1, exts: []Extent{{Len: 1, Addr: nullBlock * 4096}}},
		"huge map":        {size: 1 << 60, exts: []Extent{{Len: 4096, Addr: HoleAddr}, {Off: 4096, Len: 4096, Addr: 0}, {Off: 8192, Len: 1<<60 - 8192, Addr: HoleAddr}}},
		"block bits 8":    {o: WriteOptions{BlockBits: 8}},
		"block bits 13":   {o: WriteOptions{BlockBits: 13}},
		"long tag":        {o: WriteOptions{Devices: []Device{{Tag: strings.Repeat("a", 65)}}}},
		"huge device":     {o: WriteOptions{Devices: []Device{{Blocks: nullBlock}}}},
		"many devices":    {o: WriteOptions{Devices: make([]Device, 65535)}},
	} {
		_, err := NewLayout(oneFile(t, c.size, c.exts...), c.o)
		require.ErrorIs(t, err, fs.ErrInvalid, name)
	}
}

func TestChunkBits(t *testing.T) {
	for _, c := range []struct {
		size       int64
		boundaries int64
		want       int
	}{
		{1, 0, 0},
		{4096, 0, 0},
		{4097, 0, 1},
		{8 << 30, 0, 21},
		{1 << 62, 0, 31},
		{8 << 30, 2, 1},
		{8 << 30, 1<<18 | 1<<8, 8},
		{8 << 30, 1 << 20, 20},
		{12288, 2, 1},
	} {
		require.Equal(t, c.want, chunkBitsFor(c.size, c.boundaries, 12), "%+v", c)
	}
}

// With holes aligned as asked, one block of data anywhere costs little.
func TestHoleAlign(t *testing.T) {
	require.Equal(t, int64(4096), HoleAlign(0))
	require.Equal(t, int64(4096), HoleAlign(256<<20))
	require.Equal(t, int64(8192), HoleAlign(256<<20+1))
	for _, size := range []int64{1<<28 + 5, 8 << 30, 8<<30 + 1, 1254130450000, 1 << 62} {
		align := HoleAlign(size)
		at := size / 2 &^ (align - 1)
		l, err := NewLayout(oneFile(t, size, Extent{Len: at, Addr: HoleAddr}, Extent{Off: at, Len: align},
			Extent{Off: at + align, Len: size - at - align, Addr: HoleAddr}), WriteOptions{})
		if align > 1<<43 { // beyond what a chunk can span
			require.ErrorIs(t, err, fs.ErrInvalid)
			continue
		}
		require.NoError(t, err)
		require.LessOrEqual(t, l.MetaSize(), int64(1<<20), "%d", size)
	}
}

// Many files with a map each are bounded together.
func TestLayoutBoundsMaps(t *testing.T) {
	b := NewBuilder()
	for k := range 9 {
		const size = 100 << 30
		i, err := b.Put(fmt.Sprint(k), Attr{Mode: modeReg, Size: size})
		require.NoError(t, err)
		b.SetExtents(i, []Extent{{Len: 4096}, {Off: 4096, Len: size - 4096, Addr: HoleAddr}})
	}
	tree, err := b.Tree()
	require.NoError(t, err)
	_, err = NewLayout(tree, WriteOptions{})
	require.ErrorIs(t, err, fs.ErrInvalid)
}

// What is one run on the primary device needs no map, however it was described.
func TestLayoutMergesExtents(t *testing.T) {
	tree := oneFile(t, 12289, Extent{Len: 4096, Addr: 8192}, Extent{Off: 4096, Len: 8192, Addr: 12288}, Extent{Off: 12288, Len: 1, Addr: 20480})
	l, err := NewLayout(tree, WriteOptions{})
	require.NoError(t, err)
	require.False(t, l.chunked)
	n := readInode(t, l, 1, 24576)
	require.Equal(t, uint8(layoutPlain), n.layout())
	require.Equal(t, uint32(l.MetaSize()/4096+2), n.U)

	tree = oneFile(t, 8<<30, Extent{Len: 8 << 30, Addr: HoleAddr})
	l, err = NewLayout(tree, WriteOptions{})
	require.NoError(t, err)
	require.Equal(t, uint32(1), l.inodes[1].chunks)
	require.Equal(t, int64(4096), l.MetaSize(), "a hole of 8 GiB takes no room")
}

func readInode(t *testing.T, l *Layout, i Inode, dataSize int64) diskInode {
	t.Helper()
	var b bytes.Buffer
	_, err := l.WriteMeta(&b, dataSize)
	require.NoError(t, err)
	return getInode(b.Bytes()[l.address(i):])
}

// Half the inodes with one time decide which form they get.
func TestLayoutEpoch(t *testing.T) {
	for _, c := range []struct {
		times []int64
		epoch int64
		short int // compact inodes, the root (time 0) included
	}{
		{[]int64{5, 5, 5}, 5, 3},
		{[]int64{5, 6, 7, 8}, 0, 1},
		{[]int64{-5, -5, -5}, 0, 1},
		{[]int64{0, 0, 9}, 0, 3},
	} {
		b := NewBuilder()
		for k, s := range c.times {
			_, err := b.Put(fmt.Sprint(k), Attr{Mode: modeFifo, Mtime: s})
			require.NoError(t, err)
		}
		tree, err := b.Tree()
		require.NoError(t, err)
		l, err := NewLayout(tree, WriteOptions{BuildTime: 100})
		require.NoError(t, err)
		short := 0
		for _, p := range l.inodes {
			if p.format&formatExtended == 0 {
				short++
			}
		}
		require.Equal(t, c.short, short, "%v", c.times)
		var out bytes.Buffer
		_, err = l.WriteMeta(&out, 0)
		require.NoError(t, err)
		s, ok := getSuper(out.Bytes()[superOffset:])
		require.True(t, ok)
		require.Equal(t, c.epoch, s.Epoch)
		require.Equal(t, int64(100), s.Epoch+int64(s.BuildTime))
	}
}

type failingWriter struct{ left int }

var errDisk = errors.New("disk full")

func (w *failingWriter) Write(p []byte) (int, error) {
	if len(p) > w.left {
		return w.left, errDisk
	}
	w.left -= len(p)
	return len(p), nil
}

func TestWriteMetaErrors(t *testing.T) {
	l, err := NewLayout(oneFile(t, 4096, Extent{Len: 4096, Addr: 4096}), WriteOptions{})
	require.NoError(t, err)
	for _, size := range []int64{-1, 0, 4096, nullBlock * 4096, 1<<63 - 1} {
		_, err := l.WriteMeta(io.Discard, size)
		require.ErrorIs(t, err, fs.ErrInvalid, "data area of %d", size)
	}
	_, err = l.WriteMeta(io.Discard, 8192)
	require.NoError(t, err)
	_, err = l.WriteMeta(&failingWriter{left: 100}, 8192)
	require.ErrorIs(t, err, errDisk)
}

// Published vectors of XXH32.
func TestXXH32(t *testing.T) {
	require.Equal(t, uint32(0x02CC5D05), xxh32(nil, 0))
	require.Equal(t, uint32(0x36B78AE7), xxh32(nil, 0x9E3779B1))
	require.Equal(t, uint32(0x32D153FF), xxh32([]byte("abc"), 0))
	require.Equal(t, uint32(0xE2293B2F), xxh32([]byte("Nobody inspects the spammish repetition"), 0))
}

// The same attribute on many inodes is stored once.
func TestXattrsAreShared(t *testing.T) {
	b := NewBuilder()
	value := bytes.Repeat([]byte("v"), 1000)
	for k := range 100 {
		i, err := b.Put(fmt.Sprint(k), Attr{Mode: modeFifo})
		require.NoError(t, err)
		require.NoError(t, b.SetXattr(i, "trusted.same", value))
	}
	tree, err := b.Tree()
	require.NoError(t, err)
	l, err := NewLayout(tree, WriteOptions{})
	require.NoError(t, err)
	require.Equal(t, int64(xattrEntryLen(len("same"), 1000)), l.xattrs.sharedLen)
	require.Less(t, l.MetaSize(), int64(5*4096))
}

// Tools read from the superblock what the options said.
func TestWriteSuperblock(t *testing.T) {
	img := buildImage(t, basicFiles(), WriteOptions{UUID: [16]byte{0xab, 0xcd, 15: 0x42}, BuildTime: 1700000000})
	out, err := exec.Command(erofsTool(t, "dump.erofs"), "-s", img.path).CombinedOutput()
	require.NoError(t, err, "%s", out)
	for _, want := range []string{"abcd0000-0000-0000-0000-000000000042", "sb_csum", "mtime"} {
		require.Contains(t, strings.ToLower(string(out)), want)
	}
	require.NotContains(t, string(out), "chunked", "not needed here")
}

// The bytes of these images never change without a reason: layers that were
// converted before must come out the same.
func TestGolden(t *testing.T) {
	var got []string
	for name, files := range map[string][]wantFile{
		"basics": basicFiles(), "types": typeFiles(), "times": timeFiles(), "names": nameFiles(), "links": linkFiles(),
		"symlinks": symlinkFiles(), "epoch": epochFiles(), "sparse": sparseFiles(), "xattrs": xattrFiles(),
		"sweep": xattrSweep(), "shared": sharedFiles(), "dirs": dirSweep(),
	} {
		sum := sha256.Sum256(metaBytes(t, files, WriteOptions{UUID: [16]byte{1, 2, 3}, BuildTime: 1700000000}))
		got = append(got, name+" "+hex.EncodeToString(sum[:])+"\n")
	}
	sort.Strings(got)
	path := filepath.Join("testdata", "golden.txt")
	if *updateGolden {
		require.NoError(t, os.WriteFile(path, []byte(strings.Join(got, "")), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), strings.Join(got, ""))
}
