package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// sameImage compares what an Image says of every inode with the Tree. The tests of
// the writer and of the parser, the fuzzer's included, come through here.
func sameImage(p *Parsed, r io.ReaderAt) error {
	m, t := p.Image(r), p.Tree
	if m.Inodes() != uint64(t.Len()) {
		return fmt.Errorf("%d inodes, want %d", m.Inodes(), t.Len())
	}
	nids := map[Inode]Nid{RootInode: m.Root()}
	for queue := []Inode{RootInode}; len(queue) > 0; queue = queue[1:] {
		i := queue[0]
		if t.Len() > 20_000 && i%50 > 0 && t.Attr(i).Mode&modeType != modeDir {
			continue // a few of so many
		}
		if err := sameNode(m, t, nids[i], i); err != nil {
			return fmt.Errorf("inode %d, on disk %d: %w", i, nids[i], err)
		}
		if t.Attr(i).Mode&modeType != modeDir {
			continue
		}
		found, err := sameDir(m, t, nids, i)
		if err != nil {
			return fmt.Errorf("directory %d, on disk %d: %w", i, nids[i], err)
		}
		queue = append(queue, found...)
	}
	return nil
}

// sameDir returns the children that were not known.
func sameDir(m *Image, t *Tree, nids map[Inode]Nid, i Inode) (found []Inode, err error) {
	var all []Dirent
	var stats []Stat
	err = m.List(nids[i], 0, true, func(d Dirent, st Stat) bool {
		d.Name = bytes.Clone(d.Name)
		all, stats = append(all, d), append(stats, st)
		return true
	})
	if err != nil {
		return nil, err
	}
	if err := resumes(m, nids[i], all); err != nil {
		return nil, err
	}
	k := 0
	next := func() (Dirent, error) {
		for ; k < len(all); k++ {
			d := all[k]
			switch string(d.Name) {
			case ".":
				if d.Nid != nids[i] {
					return d, fmt.Errorf("\".\" is %d", d.Nid)
				}
			case "..":
				if d.Nid != nids[t.Parent(i)] {
					return d, fmt.Errorf("\"..\" is %d", d.Nid)
				}
			default:
				k++
				return d, nil
			}
		}
		return Dirent{}, io.EOF
	}
	for name, child := range t.Children(i) {
		d, err := next()
		if err != nil || !bytes.Equal(d.Name, name) || d.Type != t.Attr(child).Mode&modeType || stats[k-1].Attr.Mode != t.Attr(child).Mode {
			return nil, fmt.Errorf("%q of type %o, want %q: %w", d.Name, d.Type, name, err)
		}
		if nid, ok := nids[child]; !ok {
			nids[child] = d.Nid
			found = append(found, child)
		} else if nid != d.Nid {
			return nil, fmt.Errorf("%q is %d, another name of it %d", name, d.Nid, nid)
		}
		if k%100 > 0 && len(all) > 10_000 {
			continue // a few of so many
		}
		if got, ok, err := m.Lookup(nids[i], string(name)); !ok || err != nil || got != d.Nid {
			return nil, fmt.Errorf("%q is %d, %t, in a listing %d: %w", name, got, ok, d.Nid, err)
		}
		if _, ok, err := m.Lookup(nids[i], string(name)+"\x01"); ok || err != nil {
			return nil, fmt.Errorf("a name after %q: %t, %w", name, ok, err)
		}
	}
	if d, err := next(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%q is new: %w", d.Name, err)
	}
	return found, nil
}

// resumes lists a directory once more, one name at a time.
func resumes(m *Image, nid Nid, want []Dirent) error {
	if len(want) > 500 {
		want = want[:500]
	}
	at := int64(0)
	for _, w := range want {
		n := 0
		err := m.List(nid, at, false, func(d Dirent, _ Stat) bool {
			if n++; !bytes.Equal(d.Name, w.Name) || d.Nid != w.Nid {
				n = -1
			}
			at = d.Next
			return false
		})
		if err != nil || n != 1 {
			return fmt.Errorf("listing from %d: not %q: %w", at, w.Name, err)
		}
	}
	return nil
}

func sameNode(m *Image, t *Tree, nid Nid, i Inode) error {
	st, err := m.Stat(nid)
	if err != nil {
		return err
	}
	want := t.Attr(i)
	if want.Mode&modeType == modeDir {
		want.Size = st.Size
	}
	if st.Attr != want || st.Nlink != t.Nlink(i) {
		return fmt.Errorf("%+v, want %+v", st, want)
	}
	to, err := m.Target(nid)
	if err != nil || !bytes.Equal(to, t.Target(i)) {
		return fmt.Errorf("target %q, want %q: %w", to, t.Target(i), err)
	}
	got := map[string]string{}
	if err := m.Xattrs(nid, func(name []byte) { got[string(name)] = "" }); err != nil {
		return err
	}
	for name := range got {
		value, ok, err := m.Xattr(nid, name)
		if err != nil || !ok {
			return fmt.Errorf("attribute %q: %t, %w", name, ok, err)
		}
		got[name] = string(value)
	}
	if want := xattrMap(t, i); !maps.Equal(want, got) {
		return fmt.Errorf("attributes %q, want %q", got, want)
	}
	for _, none := range []string{"user.none of this name", "none", "user."} {
		if _, ok, err := m.Xattr(nid, none); ok || err != nil {
			return fmt.Errorf("attribute %q: %t, %w", none, ok, err)
		}
	}
	return sameFile(m, t, nid, i, st)
}

func sameFile(m *Image, t *Tree, nid Nid, i Inode, st Stat) error {
	f, err := m.File(nid)
	if err != nil {
		return err
	}
	var exts []Extent
	var blocks uint64
	for at := int64(0); at < f.Size; {
		e, err := m.Extent(&f, at, f.Size)
		if err != nil {
			return err
		}
		if got, ok, err := m.Seek(&f, at, e.Addr == HoleAddr); !ok || err != nil || got != at {
			return fmt.Errorf("byte %d is at %d, %t: %w", at, got, ok, err)
		}
		if got, ok, err := m.Seek(&f, at, e.Addr != HoleAddr); err != nil || ok && got < e.Off+e.Len || !ok && got != 0 {
			return fmt.Errorf("what is behind byte %d is at %d, %t: %w", at, got, ok, err)
		}
		if e.Addr != HoleAddr {
			blocks += uint64(e.Len+511) / 512
		}
		exts = append(exts, e)
		at = e.Off + e.Len
	}
	if !slices.Equal(exts, t.Extents(i)) || blocks != st.Blocks {
		return fmt.Errorf("extents %v of %d blocks, want %v, %d", exts, st.Blocks, t.Extents(i), blocks)
	}
	return nil
}

// victim is an image in memory with everything.
func victim(t *testing.T) (*Parsed, []byte) {
	t.Helper()
	m := newMutant(t, buildImage(t, victimFiles(), WriteOptions{Devices: []Device{victimDevice}}))
	p, err := m.parse()
	require.NoError(t, err)
	return p, m.b
}

func TestImageIsReadAsItWasParsed(t *testing.T) {
	p, b := victim(t)
	require.NoError(t, sameImage(p, bytes.NewReader(b)))
	m := p.Image(bytes.NewReader(b))
	for _, nid := range []Nid{0, 1, 1<<32 - 1} { // the superblock, and nowhere
		_, err := m.Stat(nid)
		require.ErrorIs(t, err, ErrChanged)
		_, _, err = m.Lookup(nid, "x")
		require.ErrorIs(t, err, ErrChanged)
	}
	file, ok, err := m.Lookup(m.Root(), "c")
	require.NoError(t, err)
	require.True(t, ok)
	_, ok, err = m.Lookup(file, "x")
	require.NoError(t, err)
	require.False(t, ok)
	require.NoError(t, m.List(file, 0, true, func(Dirent, Stat) bool { t.Error("a file has names"); return true }))
	for _, from := range []int64{-1, 1 << 40, 1<<63 - 1} {
		require.NoError(t, m.List(m.Root(), from, true, func(d Dirent, _ Stat) bool { t.Errorf("%q at %d", d.Name, from); return true }))
	}
	dir, err := m.File(m.Root())
	require.NoError(t, err)
	require.Zero(t, dir.Size)
}

func TestImageWhoseReaderFails(t *testing.T) {
	p, b := victim(t)
	m := p.Image(failingReader{})
	_, err := m.Stat(m.Root())
	require.ErrorIs(t, err, os.ErrPermission)
	require.NotErrorIs(t, err, ErrChanged)
	m = p.Image(bytes.NewReader(b[:1300])) // up to within the root
	_, _, err = m.Lookup(m.Root(), "many")
	require.ErrorIs(t, err, ErrChanged)
}

// The hot path of who serves files.
func TestExtentsAllocateNothing(t *testing.T) {
	p, b := victim(t)
	m := p.Image(bytes.NewReader(b))
	for _, name := range []string{"c", "d"} { // three chunks, and one
		nid, _, err := m.Lookup(m.Root(), name)
		require.NoError(t, err)
		f, err := m.File(nid)
		require.NoError(t, err)
		require.Less(t, testing.AllocsPerRun(1000, func() {
			if e, err := m.Extent(&f, 0, 4096); err != nil || e.Len != 4096 {
				t.Error(e, err)
			}
		}), 0.1, name) // the pool may be emptied by the collector
	}
}

// FuzzImage changes an image behind the check that was made of it. Whatever is
// then asked, there is an answer or an error that says so.
func FuzzImage(f *testing.F) {
	files := []seedFile{
		{path: "d/f", attr: Attr{Mode: modeReg | 0o644, Size: 700}, exts: []Extent{{Len: 700}}}, {path: "l", target: "x"},
		{path: "c", attr: Attr{Mode: modeReg, Size: 1500}, exts: []Extent{{Len: 512, Device: 1}, {Off: 512, Len: 512, Addr: HoleAddr}, {Off: 1024, Len: 476, Addr: 512}}},
		{path: "x", attr: Attr{Mode: modeReg}, xattr: "user.k"}, {path: "y", attr: Attr{Mode: modeReg}, xattr: "user.k"},
	}
	for k := range 50 {
		files = append(files, seedFile{path: fmt.Sprintf("many/%030d", k), attr: Attr{Mode: modeFifo}})
	}
	b, err := seedImage(files, WriteOptions{BlockBits: 9, Devices: []Device{{Blocks: 8}}})
	require.NoError(f, err)
	policy := DefaultPolicy(int64(len(b)))
	policy.Devices = announced(b)
	p, err := Parse(bytes.NewReader(b), policy)
	require.NoError(f, err)
	end := uint32(p.MetaExtents[0].Len)
	f.Add(uint32(superOffset), []byte{0}, uint32(0))
	f.Add(uint32(1500), bytes.Repeat([]byte{0xff}, 600), uint32(40))
	f.Fuzz(func(t *testing.T, at uint32, with []byte, start uint32) {
		b := bytes.Clone(b)
		copy(b[at%end:], with)
		m := p.Image(bytes.NewReader(b))
		budget := 2000
		for queue := []Nid{m.Root(), Nid(start)}; len(queue) > 0 && budget > 0; queue = queue[1:] {
			nid := queue[0]
			st, err := m.Stat(nid)
			requireChanged(t, err)
			_, err = m.Target(nid)
			requireChanged(t, err)
			requireChanged(t, m.Xattrs(nid, func([]byte) {}))
			_, _, err = m.Xattr(nid, "user.k")
			requireChanged(t, err)
			_, _, err = m.Lookup(nid, string(with))
			requireChanged(t, err)
			if file, err := m.File(nid); err == nil && file.Size > 0 {
				_, _, err = m.Seek(&file, int64(start)%file.Size, true)
				requireChanged(t, err)
				e, err := m.Extent(&file, int64(start)%file.Size, 1<<20)
				requireChanged(t, err)
				if err == nil && (e.Len <= 0 || int(e.Device) > len(p.Devices)) {
					t.Fatalf("extent %+v", e)
				}
			}
			last := int64(0)
			requireChanged(t, m.List(nid, int64(start)%4096, st.Mode&1 == 0, func(d Dirent, _ Stat) bool {
				if budget--; d.Next <= last {
					t.Fatalf("a listing goes on at %d after %d", d.Next, last)
				}
				last = d.Next
				queue = append(queue, d.Nid)
				return budget > 0
			}))
		}
	})
}

func requireChanged(t *testing.T, err error) {
	t.Helper()
	if err != nil && !errors.Is(err, ErrChanged) {
		t.Fatalf("neither an answer nor changed: %v", err)
	}
}

// BenchmarkImage asks for one inode of 10,000.
func BenchmarkImage(b *testing.B) {
	builder := NewBuilder()
	name := func(k int) (dir, file string) {
		return fmt.Sprintf("package%03d", k/100), fmt.Sprintf("module_%02d.py", k%100)
	}
	for k := range 10000 {
		dir, file := name(k)
		_, err := builder.Put(dir+"/"+file, Attr{Mode: modeReg})
		require.NoError(b, err)
	}
	tree, err := builder.Tree()
	require.NoError(b, err)
	layout, err := NewLayout(tree, WriteOptions{})
	require.NoError(b, err)
	f, err := os.Create(b.TempDir() + "/image")
	require.NoError(b, err)
	defer f.Close()
	_, err = layout.WriteMeta(f, 0)
	require.NoError(b, err)
	p, err := Parse(f, DefaultPolicy(layout.MetaSize()))
	require.NoError(b, err)
	m := p.Image(f)
	dir, _, err := m.Lookup(m.Root(), "package050")
	require.NoError(b, err)
	b.Run("lookup", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _, _ = m.Lookup(dir, "module_77.py")
		}
	})
	b.Run("stat", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _ = m.Stat(dir)
		}
	})
	b.Run("list-100", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_ = m.List(dir, 0, true, func(Dirent, Stat) bool { return true })
		}
	})
}
