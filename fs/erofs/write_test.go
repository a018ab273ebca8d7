package erofs

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for k := range b {
		b[k] = byte(k>>8) ^ byte(k)*7 ^ seed
	}
	return b
}

// posixACL is an access control list as user space reads and writes it: owner
// rw, user 1000 r, group r, mask r, others nothing.
const posixACL = "\x02\x00\x00\x00" +
	"\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\xe8\x03\x00\x00" +
	"\x04\x00\x04\x00\xff\xff\xff\xff" + "\x10\x00\x04\x00\xff\xff\xff\xff" +
	"\x20\x00\x00\x00\xff\xff\xff\xff"

// Each case is written and then judged by the kernel, fsck.erofs and go-erofs.
func TestWrite(t *testing.T) {
	for name, files := range map[string][]wantFile{
		"empty":       nil,
		"basics":      basicFiles(),
		"root":        {{path: "", attr: Attr{Mode: modeDir | 0o1777, UID: 3, GID: 70000, Mtime: 7}, xattrs: map[string]string{"user.r": "x"}}},
		"types":       typeFiles(),
		"times":       timeFiles(),
		"names":       nameFiles(),
		"links":       linkFiles(),
		"symlinks":    symlinkFiles(),
		"deep":        {{path: strings.Repeat("d/", 400) + "f", attr: regAttr(0o600), data: []byte("deep")}},
		"epoch":       epochFiles(),
		"sparse":      sparseFiles(),
		"xattrs":      xattrFiles(),
		"xattr sweep": xattrSweep(),
		"xattr share": sharedFiles(),
		"xattr large": largeXattrFiles(),
		"dir sweep":   dirSweep(),
	} {
		t.Run(name, func(t *testing.T) {
			img := buildImage(t, files, WriteOptions{})
			checkKernel(t, mountKernel(t, img.path), files)
			checkGoErofs(t, img.path, files)
			if name != "deep" { // fsck.erofs recurses until its stack ends
				runFsck(t, img.path)
			}
		})
	}
}

func basicFiles() []wantFile {
	a := Attr{Mode: modeReg | 0o4750, UID: 1000, GID: 70000, Mtime: testTime.Unix(), MtimeNsec: 123456789}
	d := a
	d.Mode = modeDir | 0o1777
	return []wantFile{
		{path: "etc", attr: d},
		{path: "etc/passwd", attr: a, data: []byte("root:x:0:0\n"), xattrs: map[string]string{"user.a": "1", "security.b": ""}},
		{path: "etc/empty", attr: a},
		{path: "etc/dir", attr: d},
		{path: "etc/link", attr: Attr{Mode: 0o777, UID: 5}, target: "passwd"},
		{path: "usr/bin/hard", link: "etc/passwd"},
		{path: "usr/lib/big", attr: regAttr(0o644), data: pattern(700001, 1)},
		{path: "usr/lib/block", attr: regAttr(0o644), data: pattern(4096, 2)},
	}
}

func typeFiles() []wantFile {
	dev := func(major, minor uint32) uint32 { return newEncodeDev(unix.Mkdev(major, minor)) }
	return []wantFile{
		{path: "dev/whiteout", attr: Attr{Mode: modeChar}},
		{path: "dev/null", attr: Attr{Mode: modeChar | 0o666, Rdev: dev(1, 3)}},
		{path: "dev/large", attr: Attr{Mode: modeChar | 0o600, Rdev: dev(259, 70000)}},
		{path: "dev/largest", attr: Attr{Mode: modeBlock | 0o600, Rdev: dev(4095, 1<<20-1), Mtime: 1}},
		{path: "dev/sda", attr: Attr{Mode: modeBlock | 0o660, Rdev: dev(8, 0), GID: 6}},
		{path: "dev/fifo", attr: Attr{Mode: modeFifo | 0o600}},
		{path: "dev/socket", attr: Attr{Mode: modeSocket | 0o600}, xattrs: map[string]string{"trusted.s": "t"}},
	}
}

func timeFiles() []wantFile {
	var files []wantFile
	for k, s := range []int64{0, 1, -1, -1 << 40, math.MaxInt32, math.MaxUint32 + 1, 1 << 40} {
		for _, ns := range []uint32{0, 1, 999999999} {
			p := fmt.Sprintf("t%d-%d", k, ns)
			files = append(files, wantFile{path: p, attr: Attr{Mode: modeReg, Mtime: s, MtimeNsec: ns}})
		}
	}
	return files
}

func nameFiles() []wantFile {
	var files []wantFile
	for _, n := range []string{
		"!", "+x", "-", "-x", "...", "..a", ".-", ".a", ".bashrc", "0", "A", "a", "aa", "a b", "é", "\xff\xfe", "\x01", "a\nb",
		strings.Repeat("n", 255), strings.Repeat("\xff", 255),
	} {
		files = append(files, wantFile{path: "d/" + n, attr: regAttr(0o600), data: []byte(n)})
		files = append(files, wantFile{path: n, attr: dirAttr(0o700)})
	}
	return files
}

func linkFiles() []wantFile {
	files := []wantFile{
		{path: "z/first", attr: Attr{Mode: modeReg | 0o600, Mtime: 5}, data: []byte("x")},
		{path: "z/fifo", attr: Attr{Mode: modeFifo}},
		{path: "z/sym", attr: Attr{Mode: 0o777}, target: "first"},
		{path: "a/fifo", link: "z/fifo"},
		{path: "a/sym", link: "z/sym"},
	}
	for k := range 300 {
		files = append(files, wantFile{path: fmt.Sprintf("d%d/n%d", k%7, k), link: "z/first"})
	}
	return files
}

func symlinkFiles() []wantFile {
	var files []wantFile
	for _, n := range []int{1, 31, 32, 33, 3999, 4030, 4031, 4032, 4033, 4063, 4064, 4065, 4094, 4095} {
		for _, mtime := range []int64{0, 1} { // compact and extended
			p := fmt.Sprintf("%d-%d", n, mtime)
			files = append(files, wantFile{path: p, attr: Attr{Mode: 0o777, Mtime: mtime}, target: strings.Repeat("t", n)})
		}
	}
	return files
}

// Most inodes share a time and become compact; what does not fit there must not.
func epochFiles() []wantFile {
	a := Attr{Mode: modeReg | 0o644, Mtime: testTime.Unix(), MtimeNsec: 5}
	var files []wantFile
	for k := range 200 {
		files = append(files, wantFile{path: fmt.Sprint("f", k), attr: a, data: []byte{byte(k)}})
	}
	b, c, d := a, a, a
	b.UID, c.GID, d.MtimeNsec = 65536, math.MaxUint32-1, 6 // -1 is no id
	return append(files,
		wantFile{path: "uid", attr: b}, wantFile{path: "gid", attr: c}, wantFile{path: "nsec", attr: d})
}

func sparseFiles() []wantFile {
	x := pattern(8192, 9)
	return []wantFile{
		{path: "hole", attr: regAttr(0o600), runs: []wantRun{{len: 12345, hole: true}}},
		{path: "huge-hole", attr: regAttr(0o600), runs: []wantRun{{len: 8 << 30, hole: true}}},
		{path: "head", attr: regAttr(0o600), runs: []wantRun{{len: 8192, data: x}, {off: 8192, len: 8<<30 - 8192, hole: true}}},
		{path: "middle", attr: regAttr(0o600), runs: []wantRun{
			{len: 1 << 30, hole: true}, {off: 1 << 30, len: 1 << 20, data: x}, {off: 1<<30 + 1<<20, len: 7 << 30, hole: true},
		}},
		{path: "tail", attr: regAttr(0o600), runs: []wantRun{{len: 4096, hole: true}, {off: 4096, len: 5, data: x[:5]}}},
		{path: "holes", attr: regAttr(0o600), runs: []wantRun{
			{len: 4096, hole: true}, {off: 4096, len: 4096, hole: true}, {off: 8192, len: 4096, data: x}, {off: 12288, len: 1, hole: true},
		}},
		{path: "after", attr: regAttr(0o600), data: x},
	}
}

func xattrFiles() []wantFile {
	long := strings.Repeat("n", 250)
	return []wantFile{
		{path: "acl", attr: regAttr(0o640), xattrs: map[string]string{"system.posix_acl_access": posixACL}},
		{path: "dir", attr: dirAttr(0o750), xattrs: map[string]string{
			"system.posix_acl_default": posixACL, "trusted.overlay.opaque": "y", "trusted.overlay.origin": "",
		}},
		{path: "all", attr: regAttr(0o600), xattrs: map[string]string{
			"user." + long: "v", "user.empty": "", "security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
			"trusted.t": "\x00binary\xff", "security.selinux": "system_u:object_r:bin_t:s0\x00",
		}},
		{path: "link", attr: Attr{Mode: 0o777}, target: "all", xattrs: map[string]string{"trusted.l": "on a link"}},
	}
}

// The chunk map must be aligned to 8 bytes whatever the length of the xattrs,
// and a tail must stay in the block of its inode.
func xattrSweep() []wantFile {
	var files []wantFile
	for n := range 40 {
		x := map[string]string{"user.s": strings.Repeat(string(rune('a'+n%26)), n) + fmt.Sprint(n)}
		for _, mtime := range []int64{0, 1} {
			p := fmt.Sprintf("%02d-%d", n, mtime)
			files = append(files,
				wantFile{path: p + "/f", attr: Attr{Mode: modeReg, Mtime: mtime}, xattrs: x, runs: []wantRun{
					{len: 4096, data: pattern(4096, byte(n))}, {off: 4096, len: 4096, hole: true}, {off: 8192, len: 99, data: pattern(99, byte(n))},
				}},
				wantFile{path: p + "/l", attr: Attr{Mode: 0o777, Mtime: mtime}, target: strings.Repeat("x", 100*n+1),
					xattrs: map[string]string{"trusted.s": x["user.s"]}})
		}
	}
	return files
}

func sharedFiles() []wantFile {
	var files []wantFile
	for k := range 300 {
		x := map[string]string{"security.selinux": "system_u:object_r:usr_t:s0\x00", "user.own": fmt.Sprint(k), "user.third": fmt.Sprint("third", k%3)}
		if k%5 == 0 {
			delete(x, "user.own") // shared ones only
		}
		files = append(files, wantFile{path: fmt.Sprint("f", k), attr: Attr{Mode: modeReg, Mtime: int64(k % 2)}, xattrs: x})
	}
	many := map[string]string{}
	for k := range 400 { // more than the count of shared ones can say
		many[fmt.Sprintf("user.many%03d", k)] = "value"
	}
	return append(files,
		wantFile{path: "many1", attr: regAttr(0), xattrs: many}, wantFile{path: "many2", attr: regAttr(0), xattrs: many})
}

func largeXattrFiles() []wantFile {
	x := map[string]string{}
	for k := range 3 {
		x[fmt.Sprint("user.large", k)] = string(pattern(65535, byte(k)))
	}
	return []wantFile{
		{path: "d", attr: dirAttr(0o700), xattrs: x},
		{path: "d/f", attr: regAttr(0o600), xattrs: map[string]string{"user.one": string(pattern(65535, 7))}, data: []byte("data")},
		{path: "d/g", attr: regAttr(0o600), xattrs: map[string]string{"user.two": string(pattern(5000, 8))}, data: []byte("more")},
		{path: "d/l", attr: Attr{Mode: 0o777}, target: "f", xattrs: map[string]string{"trusted.three": string(pattern(4090, 9))}},
	}
}

// Directories of every length around the end of a block.
func dirSweep() []wantFile {
	var files []wantFile
	for n := 120; n < 255; n++ {
		dir := fmt.Sprintf("%03d/", n)
		for k := range 15 {
			files = append(files, wantFile{path: dir + fmt.Sprintf("%02d", k) + strings.Repeat("n", 240), attr: Attr{Mode: modeFifo}})
		}
		files = append(files, wantFile{path: dir + strings.Repeat("z", n), attr: regAttr(0o600), data: []byte(dir)})
	}
	return files
}

func TestWriteLargeDirectory(t *testing.T) {
	var files []wantFile
	for k := range 70000 {
		files = append(files, wantFile{path: fmt.Sprintf("d/entry-%d", k*7919%70000), attr: Attr{Mode: modeFifo, Mtime: 3}})
	}
	checkAll(t, files, WriteOptions{})
}

// A file longer than 4 GiB moves everything behind it over 32-bit bytes.
func TestWriteLargeFile(t *testing.T) {
	x := pattern(100000, 1)
	files := []wantFile{
		{path: "a", attr: regAttr(0o600), runs: []wantRun{{len: 5<<30 + 1, data: x}}},
		{path: "b", attr: regAttr(0o600), data: x},
		{path: "c", attr: regAttr(0o600), runs: []wantRun{
			{len: 4096, data: x[:4096]}, {off: 4096, len: 4096, hole: true}, {off: 8192, len: 6 << 30, data: x},
		}},
	}
	img := buildImage(t, files, WriteOptions{})
	checkKernel(t, mountKernel(t, img.path), files)
	checkGoErofs(t, img.path, files)
}

// Blocks smaller than a page, as a raw tar for a device needs.
func TestWriteBlockSizes(t *testing.T) {
	for bits := uint8(9); bits <= 12; bits++ {
		for _, files := range [][]wantFile{basicFiles(), nameFiles(), linkFiles(), xattrSweep(), dirSweep(), sharedFiles(), symlinkFiles()} {
			img := buildImage(t, files, WriteOptions{BlockBits: bits})
			checkKernel(t, mountKernel(t, img.path), files)
			if bits == 12 {
				continue
			}
			checkGoErofs(t, img.path, files)
		}
	}
}

// The same image comes of the same entries in any order, and other options
// change nothing but their own fields.
func TestWriteDeterministic(t *testing.T) {
	for _, files := range [][]wantFile{basicFiles(), sharedFiles(), nameFiles(), sparseFiles()} {
		want := metaBytes(t, files, WriteOptions{UUID: [16]byte{1}})
		require.True(t, bytes.Equal(want, metaBytes(t, files, WriteOptions{UUID: [16]byte{1}})))
		var rest, links []wantFile
		for k := range files {
			if f := files[len(files)-1-k]; f.link != "" {
				links = append(links, f)
			} else {
				rest = append(rest, f)
			}
		}
		require.True(t, bytes.Equal(want, metaBytes(t, append(rest, links...), WriteOptions{UUID: [16]byte{1}})))
		other := metaBytes(t, files, WriteOptions{UUID: [16]byte{2}})
		require.True(t, bytes.Equal(want[superOffset+64:], other[superOffset+64:]))
		require.False(t, bytes.Equal(want, other))
	}
}

func metaBytes(t *testing.T, files []wantFile, o WriteOptions) []byte {
	img := buildImage(t, files, o)
	var b bytes.Buffer
	_, err := img.layout.WriteMeta(&b, 64<<30)
	require.NoError(t, err)
	return b.Bytes()
}
