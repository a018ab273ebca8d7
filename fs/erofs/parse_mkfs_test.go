package erofs

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	goerofs "github.com/erofs/go-erofs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// foreignTree is a directory with a real source tree and one of each oddity.
func foreignTree(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "src")
	run(t, "cp", "-a", filepath.Join(goroot(t), "src", "net"), dir)
	at := func(name string) string { return filepath.Join(dir, name) }
	require.NoError(t, unix.Mkfifo(at("pipe"), 0o600))
	require.NoError(t, unix.Mknod(at("white"), unix.S_IFCHR, 0))
	require.NoError(t, unix.Mknod(at("tty"), unix.S_IFCHR|0o620, int(unix.Mkdev(259, 70000))))
	require.NoError(t, os.Symlink("somewhere/else", at("link")))
	require.NoError(t, os.Link(at("dial.go"), at("zdial.go")))
	require.NoError(t, os.WriteFile(at("empty"), nil, 0o644))
	require.NoError(t, os.WriteFile(at("sparse"), []byte("begin"), 0o644))
	require.NoError(t, os.Truncate(at("sparse"), 1<<20))
	require.NoError(t, os.Chown(at("empty"), 70000, 5))
	require.NoError(t, unix.Setxattr(at("empty"), "user.x", []byte("1"), 0))
	require.NoError(t, unix.Setxattr(at("empty"), "security.y", []byte("2"), 0))
	return dir
}

// Images of mkfs.erofs without inline tails and compression pass, and we see in
// them what the kernel and go-erofs see.
func TestParseMkfs(t *testing.T) {
	src := foreignTree(t)
	for name, args := range map[string][]string{
		"plain":       {},
		"chunks":      {"--chunksize=4096"},
		"large chunk": {"--chunksize=1048576"},
		"one time":    {"-T0"},
		"no xattrs":   {"-x-1"},
	} {
		t.Run(name, func(t *testing.T) {
			image := mkfs(t, src, args...)
			got, err := parseFile(t, image)
			require.NoError(t, err)
			data, err := os.ReadFile(image)
			require.NoError(t, err)
			require.NoError(t, compareMounted(got.Tree, data, mountKernel(t, image)))
			require.NoError(t, compareGoErofs(got.Tree, image))
		})
	}
}

// What we refuse of mkfs.erofs's images, and by which rule.
func TestParseMkfsRefused(t *testing.T) {
	src := foreignTree(t)
	for name, c := range map[string]struct {
		rule string
		args []string
	}{
		"inline tails": {RuleLayout, nil},
		"lz4":          {RuleFeatures, []string{"-zlz4hc"}},
	} {
		image := filepath.Join(t.TempDir(), "image")
		run(t, erofsTool(t, "mkfs.erofs"), append(append([]string{}, c.args...), image, src)...)
		_, err := parseFile(t, image)
		var refused *RefusedError
		require.ErrorAs(t, err, &refused, name)
		require.Equal(t, c.rule, refused.Rule, "%s: %v", name, err)
	}
}

// compareMounted compares a tree with the kernel's view of its image.
func compareMounted(tree *Tree, image []byte, dir string) error {
	var got, want []string
	err := tree.Walk(func(path []byte, i Inode) error {
		got = append(got, string(path))
		if err := compareStat(tree, i, filepath.Join(dir, string(path))); err != nil {
			return fmt.Errorf("%q: %w", path, err)
		}
		if tree.Attr(i).Mode&modeType != modeReg {
			return nil
		}
		content, err := os.ReadFile(filepath.Join(dir, string(path)))
		if err != nil {
			return err
		}
		if !bytes.Equal(content, extentBytes(tree, i, image)) {
			return fmt.Errorf("%q: other content", path)
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		want = append(want, strings.TrimPrefix(strings.TrimPrefix(path, dir), "/"))
		return err
	})
	sort.Strings(got)
	sort.Strings(want)
	if fmt.Sprint(got) != fmt.Sprint(want) {
		return fmt.Errorf("%d paths, the kernel has %d", len(got), len(want))
	}
	return err
}

func compareStat(tree *Tree, i Inode, path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err
	}
	a := tree.Attr(i)
	got := []any{a.Mode, a.UID, a.GID, a.Mtime, a.MtimeNsec, tree.Nlink(i), a.Rdev}
	want := []any{st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec, st.Nlink, newEncodeDev(st.Rdev)}
	switch a.Mode & modeType {
	case modeReg:
		got, want = append(got, a.Size), append(want, st.Size)
	case modeLink:
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		got, want = append(got, string(tree.Target(i))), append(want, target)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		return fmt.Errorf("%v, the kernel says %v", got, want)
	}
	return checkXattrs(path, xattrMap(tree, i))
}

// extentBytes is the content of a file by its extents.
func extentBytes(tree *Tree, i Inode, image []byte) []byte {
	out := make([]byte, tree.Attr(i).Size)
	for _, e := range tree.Extents(i) {
		if e.Addr != HoleAddr {
			copy(out[e.Off:e.Off+e.Len], image[e.Addr:])
		}
	}
	return out
}

// compareGoErofs walks the image with another reader.
func compareGoErofs(tree *Tree, image string) error {
	h, err := os.Open(image)
	if err != nil {
		return err
	}
	defer h.Close()
	fsys, err := goerofs.Open(h)
	if err != nil {
		return err
	}
	paths := map[string]Inode{}
	if err := tree.Walk(func(path []byte, i Inode) error {
		paths[string(path)] = i
		return nil
	}); err != nil {
		return err
	}
	seen := 0
	err = fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		seen++
		i, ok := paths[strings.TrimPrefix(p, ".")]
		if !ok {
			return fmt.Errorf("go-erofs sees %q, we do not", p)
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*goerofs.Stat)
		if !ok {
			return fmt.Errorf("stat of %q is a %T", p, info.Sys())
		}
		a := tree.Attr(i)
		got := fmt.Sprint(a.Mode&0o777, a.UID, a.GID, a.Mtime, a.MtimeNsec, tree.Nlink(i), a.Rdev)
		if want := fmt.Sprint(uint16(st.Mode.Perm()), st.UID, st.GID, int64(st.Mtime), st.MtimeNs, st.Nlink, st.Rdev); got != want {
			return fmt.Errorf("%q: %s, go-erofs says %s", p, got, want)
		}
		return nil
	})
	if err == nil && seen != len(paths) {
		err = fmt.Errorf("go-erofs sees %d paths, we see %d", seen, len(paths))
	}
	return err
}
