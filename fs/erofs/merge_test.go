package erofs

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// node is an entry of the model: a directory has children, everything else an
// identity, which its hard links share.
type node struct {
	what     string
	identity string
	children map[string]*node
	opaque   bool
	white    bool
}

// describe is everything about an inode that does not depend on where it is.
func describe(t *Tree, i Inode, device func(uint16) uint16) string {
	s := fmt.Sprintf("%+v %q", t.Attr(i), t.Target(i))
	for name, value := range t.Xattrs(i) {
		if !strings.HasPrefix(string(name), overlayPrefix) {
			s += fmt.Sprintf(" %s=%q", name, value)
		}
	}
	for _, e := range t.Extents(i) {
		if e.Addr != HoleAddr {
			e.Device = device(e.Device)
		}
		s += fmt.Sprintf(" %+v", e)
	}
	return s
}

// modelOf is layer number k as the model has it.
func modelOf(t *Tree, i Inode, k int) *node {
	n := &node{what: describe(t, i, func(uint16) uint16 { return uint16(k + 1) }), identity: fmt.Sprint(k, ":", i)}
	a := t.Attr(i)
	n.white = a.Mode&modeType == modeChar && a.Rdev == 0
	if a.Mode&modeType == modeDir {
		n.children = map[string]*node{}
		for name, child := range t.Children(i) {
			n.children[string(name)] = modelOf(t, child, k)
		}
		n.opaque = xattrMap(t, i)[XattrOpaque] == "y"
	}
	return n
}

// put lays up over low: whiteouts and opaque marks first, then what is added.
func (low *node) put(up *node) {
	low.what, low.identity = up.what, up.identity
	for name, u := range up.children {
		old := low.children[name]
		if u.white || u.children == nil || u.opaque || old == nil || old.children == nil {
			delete(low.children, name)
		}
		switch {
		case u.white:
		case u.children == nil:
			low.children[name] = u
		default:
			if low.children[name] == nil {
				low.children[name] = &node{children: map[string]*node{}}
			}
			low.children[name].put(u)
		}
	}
}

// lines lists the model as treeLines lists a tree.
func (low *node) lines() []string {
	var out []string
	first, count := map[string]string{}, map[string]int{}
	var walk func(path string, n *node, fn func(string, *node))
	walk = func(path string, n *node, fn func(string, *node)) {
		fn(path, n)
		for _, name := range slices.Sorted(maps.Keys(n.children)) {
			walk(strings.TrimPrefix(path+"/"+name, "/"), n.children[name], fn)
		}
	}
	walk("", low, func(path string, n *node) {
		if _, ok := first[n.identity]; !ok {
			first[n.identity] = path
		}
		count[n.identity]++
	})
	walk("", low, func(path string, n *node) {
		nlink := count[n.identity]
		if n.children != nil {
			nlink = 2
			for _, c := range n.children {
				if c.children != nil {
					nlink++
				}
			}
		}
		out = append(out, fmt.Sprintf("%q is %q: %d links, %s", path, first[n.identity], nlink, n.what))
	})
	return out
}

func treeLines(t *Tree) []string {
	var out []string
	first := map[Inode]string{}
	_ = t.Walk(func(path []byte, i Inode) error {
		if _, ok := first[i]; !ok {
			first[i] = string(path)
		}
		what := describe(t, i, func(d uint16) uint16 { return d })
		out = append(out, fmt.Sprintf("%q is %q: %d links, %s", path, first[i], t.Nlink(i), what))
		return nil
	})
	return out
}

// modelMerge is Merge with maps.
func modelMerge(layers []*Tree) []string {
	low := &node{children: map[string]*node{}}
	for k, t := range layers {
		low.put(modelOf(t, RootInode, k))
	}
	return low.lines()
}

// layersFrom makes layers of any bytes: three bytes are one entry.
func layersFrom(program []byte) ([]*Tree, error) {
	var layers []*Tree
	b := NewBuilder()
	finish := func() error {
		t, err := b.Tree()
		layers, b = append(layers, t), NewBuilder()
		return err
	}
	for n := 0; n+3 <= len(program) && len(layers) < 8; n += 3 {
		op, where, arg := program[n], program[n+1], program[n+2]
		var parts []string
		for depth := 0; depth <= int(where>>6); depth++ {
			parts = append(parts, string("ab-."[where>>(2*depth)&3])+"x")
		}
		path := strings.Join(parts, "/")
		var i Inode
		var err error
		switch op % 9 {
		case 0:
			if err := finish(); err != nil {
				return nil, err
			}
			continue
		case 1, 2:
			i, err = b.Put(path, Attr{Mode: modeReg | 0o600, UID: uint32(arg), Size: 5000, Mtime: int64(n)})
			if err == nil {
				b.SetExtents(i, []Extent{{Len: 4096, Addr: 4096 * int64(arg)}, {Off: 4096, Len: 904, Addr: HoleAddr}})
			}
		case 3:
			_, err = b.Put(path, Attr{Mode: modeDir | 0o700, UID: uint32(arg), Mtime: 1})
		case 4:
			_, err = b.Put(path, Attr{Mode: modeChar, Rdev: uint32(arg) / 200})
		case 5:
			if i, err = b.Put(path, Attr{Mode: modeDir | 0o711}); err == nil {
				err = b.SetXattr(i, XattrOpaque, []byte("y"))
			}
		case 6:
			_, err = b.PutSymlink(path, Attr{Mode: 0o777}, path)
		case 7:
			if to, ok := b.Lookup(string("ab-."[arg&3]) + "x"); ok {
				_ = b.Link(path, to) // refused for directories
			}
			continue
		case 8:
			var ok bool
			if i, ok = b.Lookup(path); !ok {
				continue
			}
			if err = b.SetXattr(i, "user.k", []byte{arg}); err == nil && b.isDir(i) {
				err = b.SetXattr(i, XattrOrigin, nil)
			}
		}
		_ = err // through a file: refused, and nothing happened
	}
	return layers, finish()
}

// mergeMatches compares Merge with the model, and what is written of the result
// with the result.
func mergeMatches(layers []*Tree) error {
	got, err := Merge(layers...)
	if err != nil {
		return err
	}
	if want, have := modelMerge(layers), treeLines(got); !slices.Equal(want, have) {
		return fmt.Errorf("merged to\n%s\nwant\n%s", strings.Join(have, "\n"), strings.Join(want, "\n"))
	}
	devices := slices.Repeat([]Device{{Blocks: 1 << 10}}, len(layers))
	l, err := NewLayout(got, WriteOptions{Devices: devices})
	if err != nil {
		return err
	}
	var image bytes.Buffer
	if _, err := l.WriteMeta(&image, 0); err != nil {
		return err
	}
	p := DefaultPolicy(int64(image.Len()))
	p.Devices = devices
	parsed, err := Parse(bytes.NewReader(image.Bytes()), p)
	if err != nil {
		return err
	}
	if have := treeLines(parsed.Tree); !slices.Equal(have, treeLines(got)) {
		return fmt.Errorf("written as\n%s", strings.Join(have, "\n"))
	}
	return nil
}

// FuzzMerge merges layers that any bytes describe and compares the result with
// a model of maps.
func FuzzMerge(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{1, 0, 7, 3, 1, 9, 1, 0x44, 1, 0, 0, 0, 4, 0, 0, 5, 1, 0, 1, 0x41, 2})
	f.Add([]byte{1, 0, 1, 7, 1, 0, 7, 0x42, 0, 0, 0, 0, 4, 1, 0, 8, 0, 5, 6, 2, 2, 0, 0, 0, 3, 0, 0, 1, 0x40, 3})
	f.Fuzz(func(t *testing.T, program []byte) {
		if len(program) > 3000 {
			return
		}
		layers, err := layersFrom(program)
		if err != nil {
			t.Fatal(err)
		}
		if err := mergeMatches(layers); err != nil {
			t.Fatal(err)
		}
	})
}

func TestMergeRefuses(t *testing.T) {
	_, err := Merge()
	require.ErrorIs(t, err, fs.ErrInvalid)

	on := func(devices ...uint16) *Tree {
		b := NewBuilder()
		for k, d := range devices {
			i, err := b.Put(fmt.Sprint(k), Attr{Mode: modeReg, Size: 1})
			require.NoError(t, err)
			b.SetExtents(i, []Extent{{Len: 1, Device: d, Addr: 4096}})
		}
		tree, err := b.Tree()
		require.NoError(t, err)
		return tree
	}
	_, err = Merge(on(0, 1))
	require.ErrorIs(t, err, ErrDevices)
	_, err = Merge(on(2))
	require.ErrorIs(t, err, ErrDevices)
	_, err = MergeLayers([]MergeLayer{{Tree: on(0, 1), Devices: []uint16{7}}})
	require.ErrorIs(t, err, fs.ErrInvalid)

	huge := &Tree{inodes: []inode{{mode: modeDir, nlink: 2}}, arena: make([]byte, math.MaxUint32/2+1)}
	_, err = Merge(huge, huge)
	require.ErrorIs(t, err, fs.ErrInvalid)

	got, err := MergeLayers([]MergeLayer{{Tree: on(0, 2, 2), Devices: []uint16{4, 0, 9}}, {Tree: on(1), Devices: []uint16{0, 3}}})
	require.NoError(t, err)
	var have []uint16
	for _, i := range got.Children(RootInode) {
		have = append(have, got.Extents(i)[0].Device)
	}
	require.Equal(t, []uint16{3, 9, 9}, have)
}

// BenchmarkMergeMillion merges a million inodes in three layers, one of which
// has a name in every directory of the others.
func BenchmarkMergeMillion(b *testing.B) {
	var layers []*Tree
	for range 2 {
		t, err := millionBuilder().Tree()
		if err != nil {
			b.Fatal(err)
		}
		layers = append(layers, t)
	}
	over := NewBuilder()
	_ = layers[0].Walk(func(path []byte, i Inode) error {
		if layers[0].Attr(i).Mode&modeType != modeDir {
			return nil
		}
		_, err := over.Put(strings.TrimPrefix(string(path)+"/over", "/"), Attr{Mode: modeReg})
		return err
	})
	t, err := over.Tree()
	if err != nil {
		b.Fatal(err)
	}
	layers = append(layers, t)
	base := resetPeak(b)
	b.ReportAllocs()
	for b.Loop() {
		got, err := Merge(layers...)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(got.Len()), "inodes")
	}
	b.ReportMetric(float64(peak(b)-base)/1024, "MiB-peak-rss")
}
