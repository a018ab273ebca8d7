package differ

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/continuity/sysx"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// TestMain is also what tests run as a program of its own.
func TestMain(m *testing.M) {
	switch os.Getenv("DIFFER_TEST_AS") {
	case "":
		goleak.VerifyTestMain(m)
	case "decoder":
		os.Exit(decode(os.Stdin, os.Stdout)) //nolint:forbidigo // this is main
	case "applier":
		os.Exit(applyOne(os.Args[1], os.Args[2])) //nolint:forbidigo // this is main
	}
}

// ent is one tar entry. Zero fields get what a usual entry has.
type ent struct {
	tar.Header
	data string
}

func file(name, data string) ent { return ent{tar.Header{Name: name, Mode: 0o644}, data} }
func dir(name string) ent {
	return ent{tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}, ""}
}
func symlink(name, target string) ent {
	return ent{tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}, ""}
}
func hardlink(name, target string) ent {
	return ent{tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target, Mode: 0o644}, ""}
}

func (e ent) xattr(kv ...string) ent {
	e.PAXRecords = map[string]string{}
	for i := 0; i < len(kv); i += 2 {
		e.PAXRecords[paxXattr+kv[i]] = kv[i+1]
	}
	return e
}

func mkTar(t testing.TB, ents ...ent) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range ents {
		h := e.Header
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1700000000, 0)
		}
		h.Size = int64(len(e.data))
		require.NoError(t, w.WriteHeader(&h))
		_, err := io.WriteString(w, e.data)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return buf.Bytes()
}

// random returns n bytes that no compressor makes shorter.
func random(seed uint64, n int) string {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1})
	_, _ = r.Read(b) // never fails
	return string(b)
}

// text returns n bytes that compress like source code.
func text(seed uint64, n int) string {
	r := rand.New(rand.NewPCG(seed, 7))
	var b strings.Builder
	for b.Len() < n {
		fmt.Fprintf(&b, "func f%d(x int) { return x + %d }\n", r.IntN(1000), r.IntN(50))
	}
	return b.String()[:n]
}

// convertBytes converts a tar and returns the blob.
func convertBytes(t testing.TB, src []byte, cfg Config) (Result, []byte) {
	t.Helper()
	res, blob, err := convertTwice(t, src, cfg)
	require.NoError(t, err)
	return res, blob
}

// convertTwice converts a tar as a stream and as a file. Nothing but the spool tells
// which it was.
func convertTwice(t testing.TB, src []byte, cfg Config) (Result, []byte, error) {
	t.Helper()
	cfg.SpoolDir = t.TempDir()
	var out, outAt bytes.Buffer
	res, err := Convert(t.Context(), bytes.NewReader(src), &out, cfg)
	at, errAt := ConvertAt(t.Context(), bytes.NewReader(src), int64(len(src)), &outAt, cfg)
	if err != nil {
		require.EqualError(t, errAt, err.Error())
		return res, nil, err
	}
	require.NoError(t, errAt)
	require.True(t, bytes.Equal(out.Bytes(), outAt.Bytes()), "the same layer")
	at.SpoolSize = res.SpoolSize
	require.Equal(t, res, at)
	return res, out.Bytes(), nil
}

// imageOf decodes a whole blob as any zstd decoder does.
func imageOf(t testing.TB, blob []byte, res Result) []byte {
	t.Helper()
	if res.DiffID == res.Descriptor.Digest {
		return blob[:res.ImageSize]
	}
	dec, err := zstd.NewReader(nil)
	require.NoError(t, err)
	defer dec.Close()
	img, err := dec.DecodeAll(blob, nil)
	require.NoError(t, err)
	return img
}

// mountImage mounts an image until the test ends.
func mountImage(t testing.TB, img []byte) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "image")
	require.NoError(t, os.WriteFile(p, img, 0o600))
	return mountFile(t, p)
}

func mountFile(t testing.TB, p string) string {
	t.Helper()
	m := t.TempDir()
	require.NoError(t, unix.Mount(p, m, "erofs", unix.MS_RDONLY, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(m, 0)) })
	return m
}

// node is all that stat(2) and friends say of a file.
type node struct {
	mode         uint32
	uid, gid     uint32
	rdev         uint64
	nlink        uint64
	size         int64
	mtime        int64
	target, data string
	xattrs       string
}

func statNode(t testing.TB, p string) node {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(p, &st))
	n := node{mode: st.Mode, uid: st.Uid, gid: st.Gid, rdev: st.Rdev, nlink: st.Nlink, mtime: st.Mtim.Nano()}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		target, err := os.Readlink(p)
		require.NoError(t, err)
		n.target, n.size = target, st.Size
	case unix.S_IFREG:
		f, err := os.Open(p)
		require.NoError(t, err)
		h := sha256.New()
		_, err = io.Copy(h, f)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		n.data, n.size = string(h.Sum(nil)), st.Size
	}
	keys, err := sysx.LListxattr(p)
	require.NoError(t, err)
	slices.Sort(keys)
	for _, k := range keys {
		v, err := sysx.LGetxattr(p, k)
		require.NoError(t, err)
		n.xattrs += fmt.Sprintf(" %s=%q", k, v)
	}
	return n
}

// scanTree describes everything under root.
func scanTree(t testing.TB, root string) map[string]node {
	t.Helper()
	all := make(map[string]node)
	require.NoError(t, filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		all[rel] = statNode(t, p)
		return err
	}))
	return all
}

// list writes a mounted tree as one line per file, for tables.
func list(t testing.TB, root string) []string {
	t.Helper()
	var out []string
	for p, n := range scanTree(t, root) {
		kind := map[uint32]string{
			unix.S_IFDIR: "d", unix.S_IFREG: "-", unix.S_IFLNK: "l", unix.S_IFCHR: "c", unix.S_IFBLK: "b", unix.S_IFIFO: "p",
		}[n.mode&unix.S_IFMT]
		line := fmt.Sprintf("%s %s%o %d:%d", p, kind, n.mode&0o7777, n.uid, n.gid)
		switch kind {
		case "-":
			line += fmt.Sprintf(" size=%d nlink=%d", n.size, n.nlink)
		case "l":
			line += " -> " + n.target
		case "c", "b":
			line += fmt.Sprintf(" dev=%d:%d", unix.Major(n.rdev), unix.Minor(n.rdev))
		}
		out = append(out, line+n.xattrs)
	}
	slices.Sort(out)
	return out
}
