package differ

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

const (
	magicAt  = 257
	ustar    = "ustar\x0000"
	gnu      = "ustar  \x00"
	prefixAt = 345
	longLink = "././@LongLink"
	linkAt   = 157
	uidAt    = 108
	sizeAt   = 124
)

// records are PAX records as they stand in an extended header.
func records(kv ...string) string {
	var b strings.Builder
	for i := 0; i < len(kv); i += 2 {
		body := " " + kv[i] + "=" + kv[i+1] + "\n"
		n := len(body) + 1
		for len(fmt.Sprint(n))+len(body) != n {
			n++
		}
		b.WriteString(fmt.Sprint(n) + body)
	}
	return b.String()
}

// pax is an extended header for the next entry, or with 'g' for all.
func pax(kind byte, kv ...string) []byte {
	r := records(kv...)
	return slices.Concat(header("pax", kind, len(r), map[int]string{magicAt: ustar}), padded(r))
}

func plainFile(name, data string) []byte {
	return slices.Concat(header(name, '0', len(data), map[int]string{magicAt: ustar}), padded(data))
}

// base256 is a number in GNU's binary form.
func base256(n uint64, width int) string {
	b := make([]byte, width)
	for i := width - 1; i > 0; i-- {
		b[i] = byte(n)
		n >>= 8
	}
	b[0] = 0x80
	return string(b)
}

// dialectCases are what the many programs write that make tar archives.
var dialectCases = []hardCase{
	{name: "version 7", tar: raw(header("dir7/", 0, 0, nil), header("dir7/f", 0, 3, nil), padded("old"), header("l7", '2', 0, map[int]string{linkAt: "dir7/f"}), header("h7", '1', 0, map[int]string{linkAt: "dir7/f"}))},
	{name: "GNU tar, v7", tar: tarOf("--format=v7", func(t testing.TB, d string) { write(t, d+"/a/b", "x") })},
	{name: "GNU tar, ustar", tar: tarOf("--format=ustar", func(t testing.TB, d string) {
		write(t, d+"/a/"+strings.Repeat("n", 90)+"/"+strings.Repeat("m", 90), "x")
	})},
	{name: "GNU tar, oldgnu", tar: tarOf("--format=oldgnu", oneOfEach)},
	{name: "GNU tar, gnu", tar: tarOf("--format=gnu", oneOfEach)},
	{name: "GNU tar, pax", tar: tarOf("--format=pax --xattrs", oneOfEach)},
	{name: "GNU tar, pax with times", tar: tarOf("--format=pax --pax-option=exthdr.name=%d/x/%f,delete=ctime", oneOfEach)},
	{name: "GNU tar, volume label", theirs: "refuses", refused: "has type 'V'", tar: tarOf("--format=gnu -V label", func(t testing.TB, d string) { write(t, d+"/x", "") })},
	{name: "ustar prefix", tar: raw(slices.Concat(header("f", '0', 1, map[int]string{magicAt: ustar, prefixAt: "pre/fix"}), padded("x")))},
	{name: "GNU long name and long link", tar: raw(header(longLink, 'L', 301, map[int]string{magicAt: gnu}), padded(strings.Repeat("n/", 150)+"\x00"),
		header(longLink, 'K', 201, map[int]string{magicAt: gnu}), padded(strings.Repeat("k", 200)+"\x00"), header("short", '2', 0, map[int]string{magicAt: gnu, linkAt: "cut"}))},
	{name: "GNU binary numbers", tar: raw(header("big", '0', 1, map[int]string{magicAt: gnu, uidAt: base256(3000000000, 8), sizeAt: base256(1, 12)}), padded("x"))},
	{name: "numbers with blanks", tar: raw(header("n", '0', 0, map[int]string{100: "   644 \x00", uidAt: "    12 \x00", sizeAt: "          2 "}), padded("xy"))},
	{name: "PAX path, link path, ids, size", tar: raw(pax('x', "path", "p/"+manyBytes, "uid", "123456789", "gid", "4000000000", "size", "5"), header("x", '0', 0, map[int]string{magicAt: ustar}), padded("12345"),
		pax('x', "path", "l", "linkpath", strings.Repeat("q", 300)), header("y", '2', 0, map[int]string{magicAt: ustar, linkAt: "z"}))},
	{name: "PAX times", tar: raw(pax('x', "mtime", "1234567890.123456789123"), plainFile("t1", ""), pax('x', "mtime", "12.5"), plainFile("t2", ""), pax('x', "mtime", "-1.5"), plainFile("t3", ""))},
	{name: "PAX global header", tar: raw(pax('g', "comment", "0123456789abcdef", "uid", "5", "path", "everywhere"), plainFile("f", "x"))},
	{name: "PAX header that sets nothing", tar: raw(pax('x', "comment", "c"), plainFile("f", "x"))},
	{name: "PAX value with a line break and an equals sign", tar: raw(pax('x', "path", "a\nb=c"), plainFile("f", "x"))},
	{name: "PAX record of nonsense", theirs: "refuses", refused: "not a tar archive", tar: raw(header("pax", 'x', 9, map[int]string{magicAt: ustar}), padded("99 a=b\nxx"), plainFile("f", "x"))},
	{name: "negative size", theirs: "refuses", refused: "not a tar archive", tar: raw(pax('x', "size", "-5"), plainFile("f", "x"))},
	{name: "data behind a directory", tar: raw(header("d/", '5', 0, map[int]string{magicAt: ustar}), plainFile("d/f", "x"))},
	{name: "no end", tar: func(testing.TB) []byte { return plainFile("f", "x") }},
	{name: "one block of end, then more", tar: func(testing.TB) []byte {
		return slices.Concat(plainFile("f", "x"), make([]byte, 1024), plainFile("never", "x"))
	}},
	{name: "wrong checksum", theirs: "refuses", refused: "not a tar archive", tar: func(testing.TB) []byte {
		b := plainFile("f", "x")
		b[0] ^= 1
		return append(b, make([]byte, 1024)...)
	}},
	{name: "cut off", theirs: "refuses", refused: "truncated", tar: func(testing.TB) []byte { return plainFile("f", strings.Repeat("x", 2000))[:1500] }},
	{name: "contiguous file", theirs: "refuses", refused: "has type '7'", tar: raw(header("c", '7', 0, map[int]string{magicAt: ustar}))},
}

// TestManyFiles: 100,000 names in one directory, in no order, each found again.
func TestManyFiles(t *testing.T) {
	const n = 100000
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i := range n {
		k := i * 7919 % n
		data := ""
		if k%1000 == 0 {
			data = fmt.Sprint(k)
		}
		require.NoError(t, w.WriteHeader(&tar.Header{Name: fmt.Sprintf("many/%d", k), Mode: 0o644, Size: int64(len(data))}))
		_, err := w.Write([]byte(data))
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	res, blob := convertBytes(t, buf.Bytes(), Config{})
	img := imageOf(t, blob, res)
	_, err := erofs.Parse(bytes.NewReader(img), erofs.DefaultPolicy(int64(len(img))))
	require.NoError(t, err)
	m := mountImage(t, img) + "/many/"
	names, err := os.ReadDir(m)
	require.NoError(t, err)
	require.Len(t, names, n)
	for k := range n {
		fi, err := os.Lstat(m + fmt.Sprint(k))
		require.NoError(t, err)
		if k%1000 == 0 {
			got, err := os.ReadFile(m + fi.Name())
			require.NoError(t, err)
			require.Equal(t, fmt.Sprint(k), string(got))
		}
	}
}

// holes makes a sparse file: data at the offsets, more of them than one header
// of the old form holds when many is set.
func holes(size int64, many bool) func(testing.TB, string) {
	return func(t testing.TB, d string) {
		f, err := os.Create(d + "/sparse")
		require.NoError(t, err)
		at := []int64{0, 1 << 20, 3<<20 + 5}
		if many {
			for i := range int64(60) {
				at = append(at, 4<<20+i*131072)
			}
		}
		for _, off := range at {
			_, err = f.WriteAt([]byte(text(uint64(off), 4000)), off)
			require.NoError(t, err)
		}
		require.NoError(t, f.Truncate(size))
		require.NoError(t, f.Close())
		write(t, d+"/zz-after", "what follows is still found")
	}
}

// sparseCases are sparse files in every form that GNU tar has written. Go's reader
// calls the old form a kind of its own, which containerd does not know.
var sparseCases = []hardCase{
	{name: "sparse, old GNU", theirs: "refuses", tar: tarOf("--format=gnu -S", holes(16<<20, false)), want: sparseFiles(16 << 20)},
	{name: "sparse, old GNU with more headers", theirs: "refuses", tar: tarOf("--format=gnu -S", holes(16<<20+1, true)), want: sparseFiles(16<<20 + 1)},
	{name: "sparse, PAX 0.0", tar: tarOf("--format=pax --sparse-version=0.0 -S", holes(16<<20, true)), want: sparseFiles(16 << 20)},
	{name: "sparse, PAX 0.1", tar: tarOf("--format=pax --sparse-version=0.1 -S", holes(16<<20, true)), want: sparseFiles(16 << 20)},
	{name: "sparse, PAX 1.0", tar: tarOf("--format=pax --sparse-version=1.0 -S", holes(16<<20, true)), want: sparseFiles(16 << 20)},
	{name: "sparse, nothing but a hole", tar: tarOf("--format=pax -S", func(t testing.TB, d string) {
		write(t, d+"/sparse", "")
		require.NoError(t, os.Truncate(d+"/sparse", 16<<20+3))
		write(t, d+"/zz-after", "what follows is still found")
	}), want: sparseFiles(16<<20 + 3)},
}

func sparseFiles(size int64) []string {
	return []string{fmt.Sprintf("sparse -644 0:0 size=%d nlink=1", size), "zz-after -644 0:0 size=27 nlink=1"}
}
