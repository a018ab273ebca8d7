package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"testing"
)

// FuzzParse parses any bytes, once as they are and once with a checksum that
// is right. What is accepted must be a sound tree.
func FuzzParse(f *testing.F) {
	for _, image := range fuzzSeeds(f) {
		f.Add(image)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<20 {
			return
		}
		for range 2 {
			p := DefaultPolicy(int64(len(b)))
			p.MaxMeta, p.MaxRead, p.AnyXattrs = 1<<20, 8<<20, true
			if len(b) >= superOffset+superSize {
				p.Devices = announced(b)
			}
			got, err := Parse(bytes.NewReader(b), p)
			var refused *RefusedError
			if err != nil && !errors.As(err, &refused) {
				t.Fatalf("neither accepted nor refused: %v", err)
			}
			if err == nil {
				if err := errors.Join(sound(got, int64(len(b))), sameImage(got, bytes.NewReader(b))); err != nil {
					t.Fatal(err)
				}
			}
			if len(b) < superOffset+superSize {
				return
			}
			b = bytes.Clone(b)
			bits := b[superOffset+12]
			if bits < 9 || bits > 12 || len(b) < superOffset+superChecksumLen(bits) {
				return
			}
			head := b[superOffset : superOffset+superChecksumLen(bits)]
			clear(head[4:8])
			sum := superChecksum(head)
			head[4], head[5], head[6], head[7] = byte(sum), byte(sum>>8), byte(sum>>16), byte(sum>>24)
		}
	})
}

// announced returns the one device that an image names, so that the parser goes
// on to what refers to it.
func announced(b []byte) []Device {
	s, _ := getSuper(b[superOffset:])
	at := int(s.DeviceSlot) * slotSize
	if s.Devices != 1 || at+slotSize > len(b) {
		return nil
	}
	return []Device{{Blocks: getDeviceSlot(b[at:]).Blocks}}
}

// fuzzSeeds are small images: blocks of 512 bytes.
func fuzzSeeds(t testing.TB) [][]byte {
	devices := []Device{{Blocks: 8}}
	seeds := [][]byte{nil, make([]byte, 4096)}
	for _, files := range [][]seedFile{
		{},
		{{path: "d/f", attr: Attr{Mode: modeReg | 0o644, Size: 700}, exts: []Extent{{Len: 700}}}},
		{{path: "l", target: "x"}, {path: "w", attr: Attr{Mode: modeChar}}, {path: "p", attr: Attr{Mode: modeFifo | 0o600}}},
		{{path: "c", attr: Attr{Mode: modeReg, Size: 1500}, exts: []Extent{{Len: 512, Device: 1}, {Off: 512, Len: 512, Addr: HoleAddr}, {Off: 1024, Len: 476, Addr: 512}}}},
		{{path: "x", attr: Attr{Mode: modeReg}, xattr: "user.k"}, {path: "y", attr: Attr{Mode: modeReg}, xattr: "user.k"}, {path: "z", attr: Attr{Mode: modeDir | 0o755}, xattr: XattrOpaque}},
	} {
		image, err := seedImage(files, WriteOptions{BlockBits: 9, Devices: devices})
		if err != nil {
			t.Fatal(err)
		}
		seeds = append(seeds, image)
	}
	return seeds
}

type seedFile struct {
	path, target, xattr string
	attr                Attr
	exts                []Extent
}

func seedImage(files []seedFile, o WriteOptions) ([]byte, error) {
	b := NewBuilder()
	for _, s := range files {
		var i Inode
		var err error
		if s.target != "" {
			i, err = b.PutSymlink(s.path, s.attr, s.target)
		} else {
			i, err = b.Put(s.path, s.attr)
		}
		if err != nil {
			return nil, err
		}
		b.SetExtents(i, s.exts)
		if s.xattr != "" {
			if err := b.SetXattr(i, s.xattr, []byte("y")); err != nil {
				return nil, err
			}
		}
	}
	tree, err := b.Tree()
	if err != nil {
		return nil, err
	}
	l, err := NewLayout(tree, o)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	_, err = l.WriteMeta(&out, 1024)
	return append(out.Bytes(), make([]byte, 1024)...), err
}

// sound checks what every user of a parsed image relies on.
func sound(p *Parsed, size int64) error {
	t := p.Tree
	if t.Len() != int(p.Inodes) || len(p.MetaExtents) == 0 || p.MetaExtents[0].Off != 0 {
		return fmt.Errorf("%d inodes of %d, metadata %v", t.Len(), p.Inodes, p.MetaExtents)
	}
	for k, r := range p.MetaExtents {
		if r.Len <= 0 || r.Off+r.Len > alignUp(size, 4096) || k > 0 && r.Off <= p.MetaExtents[k-1].Off+p.MetaExtents[k-1].Len {
			return fmt.Errorf("metadata %v", p.MetaExtents)
		}
	}
	seen := make([]uint32, t.Len())
	err := t.Walk(func(path []byte, i Inode) error {
		seen[i]++
		var off int64
		for _, e := range t.Extents(i) {
			limit := int64(p.Blocks) << p.BlockBits
			if e.Device > 0 {
				limit = int64(p.Devices[e.Device-1].Blocks) << p.BlockBits
			}
			if e.Off != off || e.Len <= 0 || e.Addr != HoleAddr && (e.Addr < 0 || e.Addr+e.Len > limit) {
				return fmt.Errorf("%q: extent %+v", path, e)
			}
			off += e.Len
		}
		if a := t.Attr(i); a.Mode&modeType == modeReg && off != a.Size {
			return fmt.Errorf("%q: extents of %d bytes, a size of %d", path, off, a.Size)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i, n := range seen {
		if n == 0 || t.Attr(Inode(i)).Mode&modeType != modeDir && n != t.Nlink(Inode(i)) {
			return fmt.Errorf("inode %d has %d names, a link count of %d", i, n, t.Nlink(Inode(i)))
		}
	}
	return nil
}

// The fuzzer starts from images that pass.
func TestFuzzSeedsPass(t *testing.T) {
	for k, image := range fuzzSeeds(t)[2:] {
		p := DefaultPolicy(int64(len(image)))
		p.Devices = announced(image)
		got, err := Parse(bytes.NewReader(image), p)
		if err != nil || len(got.Devices) != 1 {
			t.Errorf("seed %d: %v", k, err)
		}
	}
}

// A reader that fails is not an image that is refused.
func TestParseReadError(t *testing.T) {
	image, err := seedImage(nil, WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = Parse(failingReader{}, DefaultPolicy(int64(len(image))))
	var refused *RefusedError
	if !errors.Is(err, os.ErrPermission) || errors.As(err, &refused) {
		t.Fatalf("got %v", err)
	}
	_, err = Parse(bytes.NewReader(image[:2000]), DefaultPolicy(int64(len(image))))
	if err == nil || errors.As(err, &refused) {
		t.Fatalf("a reader that ends early: %v", err)
	}
}

type failingReader struct{}

func (failingReader) ReadAt([]byte, int64) (int, error) { return 0, os.ErrPermission }
