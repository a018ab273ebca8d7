package differ

import (
	"archive/tar"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// extract unpacks a tar with the tar command, as root, with all that it holds.
func extract(t testing.TB, src string) string {
	t.Helper()
	d := t.TempDir()
	out, err := exec.CommandContext(t.Context(), "tar", "-C", d, "--xattrs", "--xattrs-include=*", "--numeric-owner",
		"--delay-directory-restore", "-xpf", src).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return d
}

// requireSame compares two trees file by file.
func requireSame(t testing.TB, want, got string) {
	t.Helper()
	a, b := scanTree(t, want), scanTree(t, got)
	delete(a, ".")
	delete(b, ".") // tar leaves the attributes of an unnamed root alone
	for p, n := range a {
		require.Equal(t, n, b[p], p)
	}
	require.Len(t, b, len(a))
}

// synthetic is a tree of every type with unusual attributes, the same for one
// seed.
func synthetic(seed uint64) []ent {
	r := rand.New(rand.NewPCG(seed, 1))
	var ents []ent
	dirs := []string{""}
	for i := range 400 {
		name := dirs[r.IntN(len(dirs))] + fmt.Sprintf("%s%d", strings.Repeat("x", r.IntN(60)), i)
		h := tar.Header{
			Name: name, Mode: int64(r.IntN(0o10000)), Uid: r.IntN(1 << 20), Gid: r.IntN(1 << 20),
			ModTime: time.Unix(r.Int64N(1<<32), r.Int64N(1e9)), Format: tar.FormatPAX,
		}
		e := ent{Header: h}
		switch r.IntN(9) {
		case 0, 1:
			e.Typeflag = tar.TypeDir
			dirs = append(dirs, name+"/")
		case 2:
			e.Typeflag, e.Linkname, e.Mode = tar.TypeSymlink, strings.Repeat("../t", 1+r.IntN(300)), 0o777
		case 3:
			e.Typeflag, e.Devmajor, e.Devminor = tar.TypeChar, 1+int64(r.IntN(4000)), int64(r.IntN(1<<20))
		case 4:
			e.Typeflag = tar.TypeFifo
		case 5:
			e.data = string(make([]byte, r.IntN(3<<20))) + text(uint64(i), r.IntN(200000))
		default:
			e.data = text(uint64(i), r.IntN(2*DefaultChunkSize)/(1+r.IntN(100)))
		}
		if e.Typeflag == 0 && r.IntN(3) == 0 {
			h := e.Header
			e = e.xattr("user.big", text(uint64(i), r.IntN(2000)), "user.empty", "")
			ents = append(ents, e, ent{Header: tar.Header{Name: name + "-link", Typeflag: tar.TypeLink, Linkname: name, Mode: h.Mode}})
			continue
		}
		ents = append(ents, e)
	}
	return ents
}

func TestSyntheticTrees(t *testing.T) {
	for seed := range uint64(3) {
		src := filepath.Join(t.TempDir(), "tar")
		b := mkTar(t, synthetic(seed)...)
		require.NoError(t, os.WriteFile(src, b, 0o600))
		res, blob := convertBytes(t, b, Config{})
		requireSame(t, extract(t, src), mountImage(t, imageOf(t, blob, res)))
	}
}

// TestRealTree converts the Go toolchain that runs this test.
func TestRealTree(t *testing.T) {
	goroot, err := exec.CommandContext(t.Context(), "go", "env", "GOROOT").Output()
	require.NoError(t, err)
	root := strings.TrimSpace(string(goroot))
	cmd := exec.CommandContext(t.Context(), "tar", "-C", root, "--format=pax", "--xattrs", "-c", ".")
	src, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	p := filepath.Join(t.TempDir(), "blob")
	f, err := os.Create(p)
	require.NoError(t, err)
	res, err := Convert(t.Context(), src, f, Config{Form: Raw, SpoolDir: t.TempDir()})
	require.NoError(t, err)
	require.NoError(t, cmd.Wait())
	require.NoError(t, f.Close())
	require.Greater(t, res.Inodes, 10000)
	require.NoError(t, os.Truncate(p, res.ImageSize))
	requireSame(t, root, mountFile(t, p))
}

// sparseTar is what tar -S writes of a file that has 4000 bytes of text at each
// of the offsets.
func sparseTar(t testing.TB, format string, size int64, at ...int64) []byte {
	t.Helper()
	d := t.TempDir()
	f, err := os.Create(filepath.Join(d, "sparse"))
	require.NoError(t, err)
	for _, off := range at {
		_, err = f.WriteAt([]byte(text(uint64(off), 4000)), off)
		require.NoError(t, err)
	}
	require.NoError(t, f.Truncate(size))
	require.NoError(t, f.Close())
	src, err := exec.CommandContext(t.Context(), "tar", "-C", d, "--format="+format, "-Sc", "sparse").Output()
	require.NoError(t, err)
	return src
}

// TestSparse: 8 GiB of which little is there, written by tar -S in both dialects.
func TestSparse(t *testing.T) {
	for _, format := range []string{"gnu", "pax"} {
		t.Run(format, func(t *testing.T) {
			src := sparseTar(t, format, 8<<30, 0, 700<<10, 6<<30+4097)
			require.Less(t, len(src), 1<<20)
			res, blob := convertBytes(t, src, Config{Form: Raw})
			require.Less(t, len(blob), 5<<20)
			m, err := os.Open(filepath.Join(mountImage(t, imageOf(t, blob, res)), "sparse"))
			require.NoError(t, err)
			defer m.Close()
			for _, off := range []int64{0, 700 << 10, 6<<30 + 4097} {
				got := make([]byte, 4000)
				_, err := m.ReadAt(got, off)
				require.NoError(t, err)
				require.Equal(t, text(uint64(off), 4000), string(got))
				_, err = m.ReadAt(got, off+200000)
				require.NoError(t, err)
				require.Equal(t, make([]byte, 4000), got)
			}
			fi, err := m.Stat()
			require.NoError(t, err)
			require.EqualValues(t, 8<<30, fi.Size())
		})
	}
}
