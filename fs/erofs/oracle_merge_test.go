package erofs_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// tarEntry is an entry of a layer's tar; a name that ends in "/" is a directory.
type tarEntry struct {
	name, content, link, hard string
	mode                      int64
	uid                       int
	typ                       byte
	major, minor              int64
	xattrs                    map[string]string
}

func tarLayer(t *testing.T, age int, entries []tarEntry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for k, e := range entries {
		h := &tar.Header{
			Name: e.name, Mode: e.mode, Uid: e.uid, Gid: age, Size: int64(len(e.content)), Typeflag: tar.TypeReg,
			ModTime: time.Unix(int64(1_000_000*age+k), int64(k)), Format: tar.FormatPAX,
			Devmajor: e.major, Devminor: e.minor, PAXRecords: map[string]string{},
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		switch {
		case e.typ != 0:
			h.Typeflag = e.typ
		case e.link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.link
		case e.hard != "":
			h.Typeflag, h.Linkname = tar.TypeLink, e.hard
		case strings.HasSuffix(e.name, "/"):
			h.Typeflag = tar.TypeDir
		}
		for name, value := range e.xattrs {
			h.PAXRecords["SCHILY.xattr."+name] = value
		}
		require.NoError(t, w.WriteHeader(h))
		_, err := w.Write([]byte(e.content))
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

// mountedLayer is a layer as the differ makes it, mounted by the kernel.
type mountedLayer struct {
	image, dir string
	tree       *erofs.Tree
	blocks     uint64
}

func mountLayer(t *testing.T, dir string, layerTar []byte) mountedLayer {
	t.Helper()
	var blob bytes.Buffer
	res, err := differ.Convert(t.Context(), bytes.NewReader(layerTar), &blob, differ.Config{Form: differ.Raw, SpoolDir: dir})
	require.NoError(t, err)
	l := mountedLayer{image: dir + ".i", dir: dir, blocks: uint64(res.ImageSize / 4096)}
	require.NoError(t, os.WriteFile(l.image, blob.Bytes()[:res.ImageSize], 0o600))
	mountAt(t, l.image, dir, "erofs", "")
	parsed, err := erofs.Parse(bytes.NewReader(blob.Bytes()[:res.ImageSize]), erofs.DefaultPolicy(res.ImageSize))
	require.NoError(t, err)
	l.tree = parsed.Tree
	return l
}

func mountAt(t *testing.T, source, dir, kind, opts string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(dir, 0o755))
	require.NoError(t, unix.Mount(source, dir, kind, unix.MS_RDONLY, opts))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
}

// seenFile is what a path shows; nlink and inode are kept apart, because
// overlayfs shows those of the layer, whatever is hidden.
type seenFile struct {
	what       string
	dev, inode uint64
	nlink      uint64
}

func look(t *testing.T, root string) map[string]seenFile {
	t.Helper()
	all := map[string]seenFile{}
	require.NoError(t, filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); errors.Is(err, unix.ENOENT) {
			return nil // a whiteout in the lowest layer that has this directory
		} else if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		s := seenFile{dev: st.Dev, inode: st.Ino, nlink: st.Nlink}
		s.what = fmt.Sprintf("%o %d:%d %d %v", st.Mode, st.Uid, st.Gid, st.Rdev, st.Mtim)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			s.what += fmt.Sprintf(" %d %x", st.Size, sha256.Sum256(b))
		case unix.S_IFLNK:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			s.what += " " + to
		}
		s.what += xattrsOf(t, path)
		all[rel] = s
		return nil
	}))
	return all
}

func xattrsOf(t *testing.T, path string) string {
	t.Helper()
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	require.NoError(t, err)
	s := ""
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		require.NoError(t, err)
		s += fmt.Sprintf(" %s=%q", name, value[:n])
	}
	return s
}

// requireLikeOverlay merges the layers, bottom first, lets the kernel mount the
// result over their images, and compares it with overlayfs over the layers.
func requireLikeOverlay(t *testing.T, tars ...[]byte) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "m") // device= paths are short
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	var trees []*erofs.Tree
	var lower, devices []string
	var o erofs.WriteOptions
	for k, b := range tars {
		at := filepath.Join(dir, fmt.Sprint(k))
		require.NoError(t, os.Mkdir(at, 0o700))
		l := mountLayer(t, at, b)
		trees = append(trees, l.tree)
		lower = append([]string{l.dir}, lower...)
		devices = append(devices, "device="+l.image)
		o.Devices = append(o.Devices, erofs.Device{Blocks: l.blocks})
	}
	if len(lower) == 1 { // overlayfs wants two
		lower = append(lower, filepath.Join(dir, "empty"))
		require.NoError(t, os.Mkdir(lower[1], 0o755))
	}
	mountAt(t, "overlay", filepath.Join(dir, "overlay"), "overlay", "lowerdir="+strings.Join(lower, ":"))

	merged, err := erofs.Merge(trees...)
	require.NoError(t, err)
	layout, err := erofs.NewLayout(merged, o)
	require.NoError(t, err)
	var meta bytes.Buffer
	_, err = layout.WriteMeta(&meta, 0)
	require.NoError(t, err)
	image := filepath.Join(dir, "meta")
	require.NoError(t, os.WriteFile(image, meta.Bytes(), 0o600))
	mountAt(t, image, filepath.Join(dir, "merged"), "erofs", strings.Join(devices, ","))

	want, got := look(t, filepath.Join(dir, "overlay")), look(t, filepath.Join(dir, "merged"))
	type link struct{ dev, inode uint64 }
	names, inodes := map[link]uint64{}, map[link]uint64{}
	for path, w := range want {
		require.Contains(t, got, path)
		if !strings.HasPrefix(w.what, "4") { // directories
			names[link{w.dev, w.inode}]++
		}
	}
	for path, g := range got {
		w, ok := want[path]
		require.True(t, ok, "%s is in the merged tree only", path)
		require.Equal(t, w.what, g.what, path)
		if strings.HasPrefix(w.what, "4") {
			continue
		}
		l := link{w.dev, w.inode}
		require.Equal(t, names[l], g.nlink, "%s: names that are left", path)
		require.LessOrEqual(t, g.nlink, w.nlink, path)
		if first, ok := inodes[l]; ok {
			require.Equal(t, first, g.inode, "%s: a hard link came apart", path)
		}
		inodes[l] = g.inode
	}
	require.NotEmpty(t, want)
}

func TestMergeIsWhatOverlayShows(t *testing.T) {
	bottom := []tarEntry{
		{name: "./", mode: 0o711}, {name: "kept/", mode: 0o700, xattrs: map[string]string{"user.layer": "0"}},
		{name: "kept/a", content: "a"}, {name: "kept/b", hard: "kept/a"}, {name: "c", hard: "kept/a"},
		{name: "gone/", uid: 7}, {name: "gone/x", content: strings.Repeat("x", 9000)}, {name: "gone/deep/"}, {name: "gone/deep/y"},
		{name: "opaque/"}, {name: "opaque/old", content: "old"}, {name: "opaque/sub/"}, {name: "opaque/sub/old"},
		{name: "dir-to-file/"}, {name: "dir-to-file/z"}, {name: "file-to-dir", content: "was"},
		{name: "link", link: "kept/a"}, {name: "tty", typ: tar.TypeChar, major: 5, minor: 1}, {name: "pipe", typ: tar.TypeFifo},
		{name: "h1", content: "hard"}, {name: "h2", hard: "h1"}, {name: "h3", hard: "h1"}, {name: "suid", mode: 0o4755, content: "s"},
		{name: ".wh.nothing"}, {name: "again/"}, {name: "again/1"}, {name: "mixed/"}, {name: "mixed/m0"},
	}
	second := []tarEntry{
		{name: "kept/", mode: 0o750, uid: 3, xattrs: map[string]string{"user.layer": "1", "security.test": "s"}},
		{name: "kept/.wh.b"}, {name: "kept/new", content: "new"},
		{name: ".wh.gone"}, {name: "opaque/"}, {name: "opaque/.wh..wh..opq"}, {name: "opaque/new", content: "n"},
		{name: "dir-to-file", content: "file"}, {name: "file-to-dir/"}, {name: "file-to-dir/in"},
		{name: "link", link: "elsewhere"}, {name: ".wh.h2"}, {name: ".wh.again"}, {name: "mixed", content: "a file"},
		{name: "other/"}, {name: "other/p", content: "p"}, {name: "other/q", hard: "other/p"},
	}
	third := []tarEntry{
		{name: "./", mode: 0o755, xattrs: map[string]string{"user.root": "2"}},
		{name: "gone/"}, {name: "gone/back", content: "back"}, {name: "again/"}, {name: "again/2"},
		{name: "opaque/sub/"}, {name: "opaque/sub/newest"}, {name: "mixed/"}, {name: "mixed/m2"},
		{name: "h1", content: "replaced"}, {name: "other/q", content: "no link any more"}, {name: ".wh.tty"},
	}
	layers := [][]tarEntry{bottom, second, third, {}, {{name: ".wh..wh..opq"}, {name: "last"}}}
	var tars [][]byte
	for k, entries := range layers {
		tars = append(tars, tarLayer(t, k, entries))
		t.Run(fmt.Sprintf("%d layers", k+1), func(t *testing.T) { requireLikeOverlay(t, tars...) })
	}
}

// Layers of a few names, so that they meet in every way.
func TestMergeRandomLayersIsWhatOverlayShows(t *testing.T) {
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, 0))
		var tars [][]byte
		for k := range 2 + r.IntN(4) {
			tars = append(tars, tarLayer(t, k, randomLayer(r)))
		}
		t.Run(fmt.Sprint(seed), func(t *testing.T) { requireLikeOverlay(t, tars...) })
	}
}

func randomLayer(r *rand.Rand) []tarEntry {
	kinds := map[string]string{"": "dir"}
	var entries []tarEntry
	var files []string
	for range 40 {
		dir := ""
		for range r.IntN(3) {
			if next := strings.TrimPrefix(dir+"/"+string("abc"[r.IntN(3)]), "/"); kinds[next] == "dir" {
				dir = next
			}
		}
		name := string("abcd"[r.IntN(4)])
		path := strings.TrimPrefix(dir+"/"+name, "/")
		white := strings.TrimPrefix(dir+"/.wh."+name, "/")
		if kinds[path] != "" {
			continue
		}
		switch k := r.IntN(10); {
		case k < 4:
			entries = append(entries, tarEntry{name: path + "/", uid: r.IntN(9)})
			kinds[path] = "dir"
			if r.IntN(4) == 0 {
				entries = append(entries, tarEntry{name: path + "/.wh..wh..opq"})
			}
		case k < 6:
			entries = append(entries, tarEntry{name: white})
			kinds[path] = "white"
		case k < 7 && len(files) > 0:
			entries = append(entries, tarEntry{name: path, hard: files[r.IntN(len(files))]})
			kinds[path] = "file"
		default:
			entries = append(entries, tarEntry{name: path, content: strings.Repeat(path, r.IntN(3000)), uid: r.IntN(9)})
			kinds[path] = "file"
			files = append(files, path)
		}
	}
	return entries
}
