package drivertest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// blockSize is that of the images.
const blockSize = 4096

// ProgramPath is the path in every image of a program, a copy of echo(1).
const ProgramPath = "bin/echo"

// Image is an EROFS image in memory and what its files hold.
type Image struct {
	// Files maps paths to contents.
	Files map[string][]byte
	// Data is the image data, Meta the separate metadata image or nil.
	Data, Meta []byte
	// Pinned is how many bytes at the start of Data are metadata.
	Pinned int64
}

// NewImage builds an image with files of awkward sizes, a sparse file and a
// program, from a seed. With split, the metadata is an image of its own that
// has the data as its device 1.
func NewImage(tb testing.TB, seed uint64, split bool) *Image {
	tb.Helper()
	rnd := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	b := &imageBuilder{tb: tb, b: erofs.NewBuilder(), img: &Image{Files: map[string][]byte{}}}
	if split {
		b.device = 1
	}
	for i, size := range []int{0, 1, 4095, 4096, 4097, 65536, 100_000, 300_001, 1 << 20, 3<<20 + 5} {
		content := make([]byte, size)
		_, err := rnd.Read(content)
		require.NoError(tb, err)
		b.add(fmt.Sprintf("dir%d/file%d", i%3, i), 0o644, content)
	}
	for i := range 200 { // neighbours that share chunks
		content := make([]byte, 100+37*i)
		_, err := rnd.Read(content)
		require.NoError(tb, err)
		b.add(fmt.Sprintf("small/%03d", i), 0o600, content)
	}
	program, err := os.ReadFile("/bin/echo")
	require.NoError(tb, err)
	b.add(ProgramPath, 0o755, program)
	b.addSparse("sparse", rnd)
	return b.image(split)
}

// NewBigImage builds an image with one file, "big", of size bytes.
func NewBigImage(tb testing.TB, size int) *Image {
	tb.Helper()
	b := &imageBuilder{tb: tb, b: erofs.NewBuilder(), img: &Image{Files: map[string][]byte{}}}
	content := make([]byte, size)
	_, err := rand.NewChaCha8([32]byte{}).Read(content)
	require.NoError(tb, err)
	b.add("big", 0o644, content)
	return b.image(false)
}

type imageBuilder struct {
	tb     testing.TB
	b      *erofs.Builder
	img    *Image
	area   bytes.Buffer
	device uint16
}

func (b *imageBuilder) add(path string, perm uint16, content []byte) {
	i, err := b.b.Put(path, erofs.Attr{Mode: unix.S_IFREG | perm, Size: int64(len(content))})
	require.NoError(b.tb, err)
	if len(content) > 0 {
		b.b.SetExtents(i, []erofs.Extent{b.place(0, content)})
	}
	b.img.Files[path] = content
}

// place appends content to the data area, which stays block aligned.
func (b *imageBuilder) place(off int64, content []byte) erofs.Extent {
	e := erofs.Extent{Off: off, Len: int64(len(content)), Device: b.device, Addr: int64(b.area.Len())}
	b.area.Write(content)
	if tail := b.area.Len() % blockSize; tail != 0 {
		b.area.Write(make([]byte, blockSize-tail))
	}
	return e
}

// addSparse adds a file of data, a hole and data again.
func (b *imageBuilder) addSparse(path string, rnd *rand.ChaCha8) {
	const part = 16 * blockSize
	content := make([]byte, 3*part)
	for _, p := range [][]byte{content[:part], content[2*part:]} {
		_, err := rnd.Read(p)
		require.NoError(b.tb, err)
	}
	i, err := b.b.Put(path, erofs.Attr{Mode: unix.S_IFREG | 0o644, Size: 3 * part})
	require.NoError(b.tb, err)
	b.b.SetExtents(i, []erofs.Extent{
		b.place(0, content[:part]),
		{Off: part, Len: part, Addr: erofs.HoleAddr},
		b.place(2*part, content[2*part:]),
	})
	b.img.Files[path] = content
}

func (b *imageBuilder) image(split bool) *Image {
	tree, err := b.b.Tree()
	require.NoError(b.tb, err)
	var opts erofs.WriteOptions
	onPrimary := int64(b.area.Len())
	if split {
		opts.Devices = []erofs.Device{{Tag: "data", Blocks: uint64(onPrimary / blockSize)}}
		onPrimary = 0
	}
	layout, err := erofs.NewLayout(tree, opts)
	require.NoError(b.tb, err)
	var meta bytes.Buffer
	_, err = layout.WriteMeta(&meta, onPrimary)
	require.NoError(b.tb, err)
	if split {
		b.img.Meta, b.img.Data = meta.Bytes(), b.area.Bytes()
		return b.img
	}
	b.img.Pinned = int64(meta.Len())
	b.img.Data = append(meta.Bytes(), b.area.Bytes()...)
	return b.img
}
