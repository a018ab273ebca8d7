package erofs

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// parseFile parses the image at path under the default policy.
func parseFile(t testing.TB, path string, devices ...Device) (*Parsed, error) {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	st, err := f.Stat()
	require.NoError(t, err)
	p := DefaultPolicy(st.Size())
	p.Devices, p.AnyXattrs = devices, true
	got, err := Parse(f, p)
	if err == nil {
		require.NoError(t, sameImage(got, f))
	}
	return got, err
}

// checkParse reads an image back that the writer made: the same tree, and no
// metadata outside what the layout says. Every image of the writer's tests
// comes through here.
func checkParse(t testing.TB, img testImage, o WriteOptions) {
	t.Helper()
	got, err := parseFile(t, img.path, o.Devices...)
	require.NoError(t, err)
	require.NoError(t, sameTree(img.tree, got.Tree, img.layout.MetaSize()))
	require.Equal(t, img.tree.Len(), int(got.Inodes))
	require.Equal(t, o.UUID, got.UUID)
	for k, d := range o.Devices {
		require.Equal(t, d, got.Devices[k])
	}
	require.Len(t, got.MetaExtents, 1, "our metadata is in one piece")
	require.Zero(t, got.MetaExtents[0].Off)
	require.Equal(t, img.layout.MetaSize(), got.MetaExtents[0].Len)
}

// sameTree compares two trees by walking both. Addresses on the primary device
// in want are relative to base.
func sameTree(want, got *Tree, base int64) error {
	if want.Len() != got.Len() {
		return fmt.Errorf("%d inodes, want %d", got.Len(), want.Len())
	}
	pair := map[Inode]Inode{RootInode: RootInode} // an inode of want, and its twin
	for queue := []Inode{RootInode}; len(queue) > 0; queue = queue[1:] {
		w := queue[0]
		g := pair[w]
		if err := sameInode(want, got, w, g, base); err != nil {
			return err
		}
		var names []string
		var twins []Inode
		for name, i := range got.Children(g) {
			names, twins = append(names, string(name)), append(twins, i)
		}
		k := 0
		for name, i := range want.Children(w) {
			if k >= len(names) || names[k] != string(name) {
				return fmt.Errorf("in inode %d: %q is missing among %q", w, name, names)
			}
			twin, known := pair[i]
			if known && twin != twins[k] {
				return fmt.Errorf("%q is no longer a name of the same file", name)
			}
			if !known {
				pair[i] = twins[k]
				queue = append(queue, i)
			}
			k++
		}
		if k != len(names) {
			return fmt.Errorf("in inode %d: %q is new", w, names[k:])
		}
	}
	return nil
}

func sameInode(want, got *Tree, w, g Inode, base int64) error {
	if a, b := want.Attr(w), got.Attr(g); a != b {
		return fmt.Errorf("attributes %+v, want %+v", b, a)
	}
	if a, b := want.Nlink(w), got.Nlink(g); a != b {
		return fmt.Errorf("inode %d: link count %d, want %d", w, b, a)
	}
	if !bytes.Equal(want.Target(w), got.Target(g)) {
		return fmt.Errorf("target %q, want %q", got.Target(g), want.Target(w))
	}
	if a, b := xattrMap(want, w), xattrMap(got, g); !maps.Equal(a, b) {
		return fmt.Errorf("attributes %q, want %q", b, a)
	}
	var exts []Extent
	for _, e := range want.Extents(w) {
		if e.Device == 0 && e.Addr != HoleAddr {
			e.Addr += base
		}
		if k := len(exts) - 1; k >= 0 && exts[k].Device == e.Device && (exts[k].Addr == HoleAddr && e.Addr == HoleAddr ||
			e.Addr != HoleAddr && exts[k].Addr != HoleAddr && exts[k].Addr+exts[k].Len == e.Addr) {
			exts[k].Len += e.Len
			continue
		}
		exts = append(exts, e)
	}
	for k := range exts {
		if exts[k].Addr == HoleAddr {
			exts[k].Device = 0
		}
	}
	if !slices.Equal(exts, got.Extents(g)) {
		return fmt.Errorf("extents %v, want %v", got.Extents(g), exts)
	}
	return nil
}

func xattrMap(t *Tree, i Inode) map[string]string {
	m := map[string]string{}
	last := ""
	for name, value := range t.Xattrs(i) {
		if string(name) <= last {
			m["unsorted"] = last
		}
		last = string(name)
		m[last] = string(value)
	}
	return m
}
