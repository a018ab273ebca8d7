package drivertest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
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

// NewImage is BuildImage for a test.
func NewImage(tb testing.TB, seed uint64, split bool) *Image {
	tb.Helper()
	img, err := BuildImage(seed, split)
	require.NoError(tb, err)
	return img
}

// BuildImage builds an image with files of awkward sizes, a sparse file and a
// program, from a seed. With split, the metadata is an image of its own that
// has the data as its device 1.
func BuildImage(seed uint64, split bool) (*Image, error) {
	b := newImageBuilder(seed)
	if split {
		b.device = 1
	}
	for i, size := range []int{0, 1, 4095, 4096, 4097, 65536, 100_000, 300_001, 1 << 20, 3<<20 + 5} {
		b.add(fmt.Sprintf("dir%d/file%d", i%3, i), 0o644, b.random(size))
	}
	for i := range 200 { // neighbours that share chunks
		b.add(fmt.Sprintf("small/%03d", i), 0o600, b.random(100+37*i))
	}
	program, err := os.ReadFile("/bin/echo")
	if err != nil {
		return nil, fmt.Errorf("finding a program for the image: %w", err)
	}
	b.add(ProgramPath, 0o755, program)
	b.addSparse("sparse")
	return b.image(split)
}

// NewBigImage builds an image with one file, "big", of size bytes.
func NewBigImage(tb testing.TB, size int) *Image {
	tb.Helper()
	b := newImageBuilder(0)
	b.add("big", 0o644, b.random(size))
	img, err := b.image(false)
	require.NoError(tb, err)
	return img
}

// imageBuilder collects an image; the first error stays in err.
type imageBuilder struct {
	b      *erofs.Builder
	img    *Image
	rnd    *rand.ChaCha8
	area   bytes.Buffer
	device uint16
	err    error
}

func newImageBuilder(seed uint64) *imageBuilder {
	return &imageBuilder{
		b:   erofs.NewBuilder(),
		img: &Image{Files: map[string][]byte{}},
		rnd: rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}),
	}
}

func (b *imageBuilder) random(n int) []byte {
	content := make([]byte, n)
	_, err := b.rnd.Read(content)
	b.err = errors.Join(b.err, err)
	return content
}

func (b *imageBuilder) add(path string, perm uint16, content []byte) {
	i, err := b.b.Put(path, erofs.Attr{Mode: unix.S_IFREG | perm, Size: int64(len(content))})
	b.err = errors.Join(b.err, err)
	if err == nil && len(content) > 0 {
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
func (b *imageBuilder) addSparse(path string) {
	const part = 16 * blockSize
	content := slices.Concat(b.random(part), make([]byte, part), b.random(part))
	i, err := b.b.Put(path, erofs.Attr{Mode: unix.S_IFREG | 0o644, Size: 3 * part})
	b.err = errors.Join(b.err, err)
	if err == nil {
		b.b.SetExtents(i, []erofs.Extent{
			b.place(0, content[:part]),
			{Off: part, Len: part, Addr: erofs.HoleAddr},
			b.place(2*part, content[2*part:]),
		})
	}
	b.img.Files[path] = content
}

func (b *imageBuilder) image(split bool) (*Image, error) {
	if b.err != nil {
		return nil, b.err
	}
	tree, err := b.b.Tree()
	if err != nil {
		return nil, err
	}
	var opts erofs.WriteOptions
	onPrimary := int64(b.area.Len())
	if split {
		opts.Devices = []erofs.Device{{Tag: "data", Blocks: uint64(onPrimary / blockSize)}}
		onPrimary = 0
	}
	layout, err := erofs.NewLayout(tree, opts)
	if err != nil {
		return nil, err
	}
	var meta bytes.Buffer
	if _, err = layout.WriteMeta(&meta, onPrimary); err != nil {
		return nil, err
	}
	if split {
		b.img.Meta, b.img.Data = meta.Bytes(), b.area.Bytes()
		return b.img, nil
	}
	b.img.Pinned = int64(meta.Len())
	b.img.Data = append(meta.Bytes(), b.area.Bytes()...)
	return b.img, nil
}
