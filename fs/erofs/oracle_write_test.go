package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// wantFile is what a reader must find under one path. The tests describe trees
// with it, build images from it and compare what the kernel shows.
type wantFile struct {
	path   string
	attr   Attr
	target string            // symbolic link
	link   string            // another name of that path; nothing else counts
	xattrs map[string]string // full name to value
	data   []byte            // contiguous content
	runs   []wantRun         // or content in runs
}

// wantRun is one extent and the bytes at its start; the rest reads as zeros.
type wantRun struct {
	off, len int64
	device   uint16
	addr     int64 // of runs on extra devices; the primary's are placed
	hole     bool
	data     []byte
}

func dirAttr(mode uint16) Attr { return Attr{Mode: modeDir | mode} }

func regAttr(mode uint16) Attr { return Attr{Mode: modeReg | mode} }

// testImage is an image under construction: metadata by the package, data area
// as a sparse file behind it.
type testImage struct {
	path   string
	layout *Layout
	tree   *Tree
}

// buildImage enters the files into a Builder in the order given, places their
// content in tree order and writes the image to a file.
func buildImage(t *testing.T, files []wantFile, o WriteOptions) testImage {
	t.Helper()
	tree, err := buildFiles(t, files).Tree()
	require.NoError(t, err)
	return writeImage(t, tree, files, o)
}

func buildFiles(t *testing.T, files []wantFile) *Builder {
	t.Helper()
	b := NewBuilder()
	for _, f := range files {
		if f.link != "" {
			to, ok := b.Lookup(f.link)
			require.True(t, ok, f.link)
			require.NoError(t, b.Link(f.path, to))
			continue
		}
		i, err := putFile(b, f)
		require.NoError(t, err)
		for name, value := range f.xattrs {
			require.NoError(t, b.SetXattr(i, name, []byte(value)))
		}
	}
	return b
}

func putFile(b *Builder, f wantFile) (Inode, error) {
	if f.target != "" {
		return b.PutSymlink(f.path, f.attr, f.target)
	}
	f.attr.Size = f.size()
	return b.Put(f.path, f.attr)
}

func (f *wantFile) size() int64 {
	if f.target != "" {
		return int64(len(f.target))
	}
	if n := len(f.runs); n > 0 {
		return f.runs[n-1].off + f.runs[n-1].len
	}
	return int64(len(f.data))
}

func writeImage(t *testing.T, tree *Tree, files []wantFile, o WriteOptions) testImage {
	t.Helper()
	byPath := map[string]*wantFile{}
	for k := range files {
		byPath[files[k].path] = &files[k]
	}
	block := int64(4096)
	if o.BlockBits != 0 {
		block = 1 << o.BlockBits
	}
	type piece struct {
		addr int64
		data []byte
	}
	var pieces []piece
	var end int64
	seen := map[Inode]bool{}
	require.NoError(t, tree.Walk(func(path []byte, i Inode) error {
		f := byPath[string(path)]
		if f == nil || f.link != "" || seen[i] || tree.Attr(i).Mode&modeType != modeReg || f.size() == 0 {
			return nil
		}
		seen[i] = true
		runs := f.runs
		if len(runs) == 0 {
			runs = []wantRun{{len: int64(len(f.data)), data: f.data}}
		}
		var exts []Extent
		for _, r := range runs {
			e := Extent{Off: r.off, Len: r.len, Device: r.device, Addr: r.addr}
			switch {
			case r.hole:
				e.Addr = HoleAddr
			case r.device == 0:
				e.Addr = end
				pieces = append(pieces, piece{end, r.data})
				end = alignUp(end+r.len, block)
			}
			exts = append(exts, e)
		}
		tree.SetExtents(i, exts)
		return nil
	}))
	l, err := NewLayout(tree, o)
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "image")
	out, err := os.Create(path)
	require.NoError(t, err)
	defer out.Close()
	n, err := l.WriteMeta(out, end)
	require.NoError(t, err)
	require.Equal(t, l.MetaSize(), n)
	for _, p := range pieces {
		_, err := out.WriteAt(p.data, l.MetaSize()+p.addr)
		require.NoError(t, err)
	}
	require.NoError(t, out.Truncate(l.MetaSize()+alignUp(end, block)))
	img := testImage{path, l, tree}
	checkParse(t, img, o)
	return img
}

// mountKernel mounts an image read-only with plain mount(2), for the time of
// the test.
func mountKernel(t *testing.T, image string, devices ...string) string {
	t.Helper()
	dir := t.TempDir()
	var opts []string
	for _, d := range devices {
		opts = append(opts, "device="+d)
	}
	require.NoError(t, unix.Mount(image, dir, "erofs", unix.MS_RDONLY, strings.Join(opts, ",")))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	return dir
}

// checkKernel compares a mounted image with what it was made of: every path,
// no other path, and everything stat, readlink, getxattr and read say.
func checkKernel(t *testing.T, dir string, files []wantFile) {
	t.Helper()
	byPath, links, subdirs := expectations(files)
	var want []string
	for p := range byPath {
		want = append(want, p)
	}
	var got []string
	require.NoError(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if rel := strings.TrimPrefix(strings.TrimPrefix(p, dir), "/"); err == nil {
			got = append(got, rel)
		}
		return err
	}))
	sort.Strings(want)
	sort.Strings(got)
	require.Equal(t, want, got)
	for _, p := range want {
		f := byPath[p]
		nlink := uint64(links[f])
		if f.attr.Mode&modeType == modeDir {
			nlink = uint64(2 + subdirs[p])
		}
		if err := checkFile(filepath.Join(dir, p), f, nlink); err != nil {
			t.Errorf("%q: %v", p, err)
		}
	}
}

// expectations adds the directories that the files imply, and counts.
func expectations(files []wantFile) (byPath map[string]*wantFile, links map[*wantFile]int, subdirs map[string]int) {
	byPath = map[string]*wantFile{"": {attr: dirAttr(0o755)}}
	links, subdirs = map[*wantFile]int{}, map[string]int{}
	for k := range files {
		f := &files[k]
		for cut, c := range f.path {
			if p := f.path[:cut]; c == '/' && byPath[p] == nil {
				byPath[p] = &wantFile{path: p, attr: dirAttr(0o755)}
			}
		}
		if f.link != "" {
			byPath[f.path] = byPath[f.link]
		} else {
			byPath[f.path] = f
		}
	}
	for p, f := range byPath {
		links[f]++
		if parent := max(strings.LastIndexByte(p, '/'), 0); p != "" && f.attr.Mode&modeType == modeDir {
			subdirs[p[:parent]]++
		}
	}
	return byPath, links, subdirs
}

func checkFile(path string, f *wantFile, nlink uint64) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err
	}
	mode := uint32(f.attr.Mode)
	if f.target != "" {
		mode |= modeLink
	}
	got := []any{st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec, st.Nlink}
	want := []any{mode, f.attr.UID, f.attr.GID, f.attr.Mtime, int64(f.attr.MtimeNsec), nlink}
	if t := mode & modeType; t == modeChar || t == modeBlock {
		got, want = append(got, newEncodeDev(st.Rdev)), append(want, f.attr.Rdev)
	}
	if t := mode & modeType; t == modeReg || t == modeLink {
		got, want = append(got, st.Size), append(want, f.size())
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		return fmt.Errorf("mode, uid, gid, mtime, nsec, nlink, rdev or size: %v, want %v", got, want)
	}
	if err := checkXattrs(path, f.xattrs); err != nil {
		return err
	}
	switch mode & modeType {
	case modeLink:
		got, err := os.Readlink(path)
		if err == nil && got != f.target {
			err = fmt.Errorf("target %q", got)
		}
		return err
	case modeReg:
		return checkContent(path, f)
	}
	return nil
}

// newEncodeDev is the kernel's encoding of a device number, from user space's.
func newEncodeDev(rdev uint64) uint32 {
	major, minor := unix.Major(rdev), unix.Minor(rdev)
	return minor&0xff | major<<8 | minor&^0xff<<12
}

func checkXattrs(path string, want map[string]string) error {
	buf := make([]byte, 64<<10) // XATTR_SIZE_MAX and XATTR_LIST_MAX
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		return err
	}
	names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	if n == 0 {
		names = nil
	}
	if len(names) != len(want) {
		return fmt.Errorf("has xattrs %q, want %d", names, len(want))
	}
	for name, value := range want {
		n, err := unix.Lgetxattr(path, name, buf)
		if err != nil {
			return fmt.Errorf("xattr %q: %w", name, err)
		}
		if string(buf[:n]) != value {
			return fmt.Errorf("xattr %q has %d other bytes", name, n)
		}
	}
	if _, err := unix.Lgetxattr(path, "user.not-there", buf); !errors.Is(err, unix.ENODATA) {
		return fmt.Errorf("a missing xattr: %w", err)
	}
	return nil
}

// checkContent reads a file, or of a large one its runs at both ends.
func checkContent(path string, f *wantFile) error {
	h, err := os.Open(path)
	if err != nil {
		return err
	}
	defer h.Close()
	runs := f.runs
	if len(runs) == 0 {
		runs = []wantRun{{len: int64(len(f.data)), data: f.data}}
	}
	for _, r := range runs {
		want := make([]byte, min(r.len, max(1<<20, int64(len(r.data)))))
		if !r.hole {
			copy(want, r.data)
		}
		got := make([]byte, len(want))
		if _, err := h.ReadAt(got, r.off); err != nil && len(got) > 0 {
			return err
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("wrong bytes in the run at %d", r.off)
		}
		last := make([]byte, 1)
		if r.len > int64(len(want)) {
			if _, err := h.ReadAt(last, r.off+r.len-1); err != nil {
				return err
			}
			if last[0] != 0 {
				return fmt.Errorf("last byte of the run at %d: %d", r.off, last[0])
			}
		}
	}
	if n, _ := h.ReadAt(make([]byte, 1), f.size()); n != 0 {
		return fmt.Errorf("bytes after the end")
	}
	return nil
}

// erofsTool returns the path of a program of erofs-utils: from the newer build
// of `make tools`, else from the system.
func erofsTool(t testing.TB, name string) string {
	t.Helper()
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	built := filepath.Join(root, ".cache", "tools", "bin", name)
	if _, err := os.Stat(built); err == nil {
		return built
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("this test needs %s of erofs-utils: run `make tools`, or install the package erofs-utils", name)
	}
	return path
}

// runFsck lets fsck.erofs judge an image.
func runFsck(t *testing.T, image string, devices ...string) {
	t.Helper()
	var args []string
	for _, d := range devices {
		args = append(args, "--device="+d)
	}
	out, err := exec.Command(erofsTool(t, "fsck.erofs"), append(args, image)...).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

var testTime = time.Date(2024, 5, 6, 7, 8, 9, 123456789, time.UTC)

// checkAll runs every oracle over the image of files.
func checkAll(t *testing.T, files []wantFile, o WriteOptions) testImage {
	t.Helper()
	img := buildImage(t, files, o)
	checkKernel(t, mountKernel(t, img.path), files)
	runFsck(t, img.path)
	return img
}
