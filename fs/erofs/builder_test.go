package erofs

import (
	"io/fs"
	"math/rand"
	"sort"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// treePaths lists a tree as path:type, with the link count of what has several.
func treePaths(t *testing.T, tree *Tree) []string {
	t.Helper()
	var got []string
	require.NoError(t, tree.Walk(func(path []byte, i Inode) error {
		s := string(path)
		if tree.Attr(i).Mode&modeType == modeDir {
			s += "/"
		}
		got = append(got, s)
		return nil
	}))
	return got
}

func mustPut(t *testing.T, b *Builder, path string, mode uint16) Inode {
	t.Helper()
	i, err := b.Put(path, Attr{Mode: mode})
	require.NoError(t, err)
	return i
}

func TestBuilderReplaces(t *testing.T) {
	b := NewBuilder()
	d := mustPut(t, b, "a/d", modeDir|0o700)
	require.NoError(t, b.SetXattr(d, "user.x", []byte("1")))
	f := mustPut(t, b, "a/d/f", modeReg|0o600)
	require.NoError(t, b.Link("a/other", f))
	require.Equal(t, d, mustPut(t, b, "a/d", modeDir|0o711), "a directory over a directory keeps its children")
	_, ok := b.Lookup("a/d/f")
	require.True(t, ok)
	require.Equal(t, uint16(modeDir|0o711), b.Attr(d).Mode)

	mustPut(t, b, "a/d", modeReg|0o644)
	_, ok = b.Lookup("a/d/f")
	require.False(t, ok)
	got, ok := b.Lookup("a/other")
	require.True(t, ok)
	require.Equal(t, f, got, "a hard link outlives the other name")
	_, err := b.Put("a/d/x", Attr{Mode: modeReg})
	require.ErrorIs(t, err, ErrNotDir)

	mustPut(t, b, "a/d", modeDir|0o700)
	mustPut(t, b, "a/d/new", modeFifo)
	tree, err := b.Tree()
	require.NoError(t, err)
	require.Equal(t, []string{"/", "a/", "a/d/", "a/d/new", "a/other"}, treePaths(t, tree))
	require.Equal(t, 5, tree.Len())
	for x := range tree.Xattrs(2) {
		t.Errorf("xattr %q of the directory that was replaced", x)
	}
}

// A link may take its target's only other place away.
func TestBuilderLinkOverItsTarget(t *testing.T) {
	b := NewBuilder()
	f := mustPut(t, b, "d/sub/f", modeReg|0o600)
	require.NoError(t, b.Link("d", f))
	require.NoError(t, b.Link("d", f))
	tree, err := b.Tree()
	require.NoError(t, err)
	require.Equal(t, []string{"/", "d"}, treePaths(t, tree))
	require.Equal(t, uint32(1), tree.Nlink(1))
}

func TestBuilderRemove(t *testing.T) {
	b := NewBuilder()
	keep := mustPut(t, b, "o/x/keep", modeReg)
	mustPut(t, b, "o/x/lose", modeReg)
	mustPut(t, b, "o/y/lose", modeReg)
	mustPut(t, b, "p/q/r", modeReg)
	require.NoError(t, b.RemoveChildren("o", func(i Inode) bool { return i == keep }))
	require.NoError(t, b.Remove("p/q"))
	require.ErrorIs(t, b.Remove("p/q"), fs.ErrNotExist)
	require.ErrorIs(t, b.Remove("p/q/r"), fs.ErrNotExist)
	require.ErrorIs(t, b.Remove("."), fs.ErrInvalid)
	require.ErrorIs(t, b.RemoveChildren("none", nil), fs.ErrNotExist)
	require.ErrorIs(t, b.RemoveChildren("o/x/keep", nil), ErrNotDir)
	mustPut(t, b, "p/q/again", modeReg)
	tree, err := b.Tree()
	require.NoError(t, err)
	require.Equal(t, []string{"/", "o/", "o/x/", "o/x/keep", "p/", "p/q/", "p/q/again"}, treePaths(t, tree))
}

func TestBuilderRefuses(t *testing.T) {
	b := NewBuilder()
	f := mustPut(t, b, "f", modeReg)
	for _, p := range []string{
		"/", "/a", "a/", "a//b", "./a", "a/.", "a/./b", "..", "../a", "a/../b", "a\x00", "a\x00/b", "//",
		strings.Repeat("n", 256), strings.Repeat("n", 256) + "/a", strings.Repeat("n/", 2048),
	} {
		_, err := b.Put(p, Attr{Mode: modeReg})
		require.ErrorIs(t, err, fs.ErrInvalid, "%q", p)
		_, ok := b.Lookup(p)
		require.False(t, ok, "%q", p)
	}
	for _, a := range []Attr{{}, {Mode: 0o644}, {Mode: modeLink}, {Mode: 0o170000}, {Mode: modeReg, Size: -1}} {
		_, err := b.Put("x", a)
		require.ErrorIs(t, err, fs.ErrInvalid, "%v", a)
	}
	for _, target := range []string{"", "a\x00b", strings.Repeat("t", 4096)} {
		_, err := b.PutSymlink("l", Attr{}, target)
		require.ErrorIs(t, err, fs.ErrInvalid)
	}
	for _, root := range []string{"", "."} {
		_, err := b.Put(root, Attr{Mode: modeReg})
		require.ErrorIs(t, err, fs.ErrInvalid)
		_, err = b.PutSymlink(root, Attr{}, "x")
		require.ErrorIs(t, err, fs.ErrInvalid)
		require.ErrorIs(t, b.Link(root, f), fs.ErrInvalid)
	}
	require.ErrorIs(t, b.Link("l", RootInode), fs.ErrInvalid)
	require.ErrorIs(t, b.Link("l", 999), fs.ErrNotExist)
	require.NoError(t, b.Remove("f"))
	require.ErrorIs(t, b.Link("l", f), fs.ErrNotExist)
	_, err := b.Tree()
	require.NoError(t, err)
	_, err = b.Tree()
	require.ErrorIs(t, err, errFrozen)
	_, err = b.Put("f", Attr{Mode: modeReg})
	require.ErrorIs(t, err, errFrozen)
	require.ErrorIs(t, b.Remove("f"), errFrozen)
	require.ErrorIs(t, b.SetXattr(0, "user.a", nil), errFrozen)
}

func TestBuilderXattrs(t *testing.T) {
	b := NewBuilder()
	for _, name := range []string{"", "user", "user.", "system.nfs4_acl", "system.posix_acl_accessx", "lustre.x"} {
		require.ErrorIs(t, b.SetXattr(0, name, nil), ErrXattrName, "%q", name)
	}
	require.ErrorIs(t, b.SetXattr(0, "user."+strings.Repeat("n", 256), nil), fs.ErrInvalid)
	require.ErrorIs(t, b.SetXattr(0, "user.a\x00", nil), fs.ErrInvalid)
	require.ErrorIs(t, b.SetXattr(0, "user.a", make([]byte, 65536)), fs.ErrInvalid)
	big := make([]byte, 65535)
	for _, name := range []string{"user.1", "user.2", "user.3"} {
		require.NoError(t, b.SetXattr(0, name, big))
	}
	require.ErrorIs(t, b.SetXattr(0, "user.4", big), fs.ErrInvalid, "the body has its own limit")
	require.NoError(t, b.SetXattr(0, "user.3", big), "replacing adds nothing")
	require.NoError(t, b.SetXattr(0, "user.1", []byte("one")))
	require.NoError(t, b.SetXattr(0, "security.s", nil))
	tree, err := b.Tree()
	require.NoError(t, err)
	var names []string
	for name, value := range tree.Xattrs(0) {
		names = append(names, string(name))
		if string(name) == "user.1" {
			require.Equal(t, "one", string(value))
		}
	}
	require.Equal(t, []string{"security.s", "user.1", "user.2", "user.3"}, names)
}

func TestBuilderNormalises(t *testing.T) {
	b := NewBuilder()
	i, err := b.Put("f", Attr{Mode: modeFifo, Rdev: 5, Size: 6, Mtime: 1, MtimeNsec: 2e9 + 3})
	require.NoError(t, err)
	require.Equal(t, Attr{Mode: modeFifo, Mtime: 3, MtimeNsec: 3}, b.Attr(i))
	b.SetAttr(i, Attr{Mode: modeReg | 0o600, UID: 9})
	require.Equal(t, Attr{Mode: modeFifo | 0o600, UID: 9}, b.Attr(i))
}

// Random operations, next to a model that is a sorted list of paths.
func TestBuilderAgainstModel(t *testing.T) {
	for seed := range int64(60) {
		r := rand.New(rand.NewSource(seed))
		b, model := NewBuilder(), map[string]bool{} // path to whether it is a directory
		for range 400 {
			var parts []string
			for range 1 + r.Intn(4) {
				parts = append(parts, string("abc+-."[r.Intn(5)])+string("xy"[r.Intn(2)]))
			}
			path := strings.Join(parts, "/")
			switch r.Intn(6) {
			case 0:
				err := b.Remove(path)
				_, was := model[path]
				require.Equal(t, was, err == nil, "%v", err)
				modelDrop(model, path)
			case 1:
				if model[path] {
					require.NoError(t, b.RemoveChildren(path, nil))
					modelDrop(model, path+"/")
				}
			case 2:
				_, err := b.Put(path, Attr{Mode: modeDir})
				require.Equal(t, modelPut(model, path, true), err == nil, "%v", err)
			default:
				_, err := b.Put(path, Attr{Mode: modeReg})
				require.Equal(t, modelPut(model, path, false), err == nil, "%v", err)
			}
		}
		compareModel(t, b, model)
	}
}

func compareModel(t *testing.T, b *Builder, model map[string]bool) {
	tree, err := b.Tree()
	require.NoError(t, err)
	want := []string{"/"}
	for p, dir := range model {
		if dir {
			p += "/"
		}
		want = append(want, p)
	}
	// Depth first by name: as the separator were the smallest byte.
	key := func(s string) string { return strings.ReplaceAll(strings.TrimSuffix(s, "/"), "/", "\x00") }
	sort.Slice(want, func(i, k int) bool { return key(want[i]) < key(want[k]) })
	require.Equal(t, want, treePaths(t, tree))
	require.Equal(t, len(want), tree.Len())
}

func modelDrop(model map[string]bool, prefix string) {
	delete(model, prefix)
	for p := range model {
		if strings.HasPrefix(p, strings.TrimSuffix(prefix, "/")+"/") {
			delete(model, p)
		}
	}
}

func modelPut(model map[string]bool, path string, dir bool) bool {
	for k, c := range path {
		if c != '/' {
			continue
		}
		if isDir, ok := model[path[:k]]; ok && !isDir {
			return false
		}
		model[path[:k]] = true
	}
	if !dir || !model[path] {
		modelDrop(model, path)
	}
	model[path] = dir
	return true
}
