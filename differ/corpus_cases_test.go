package differ

import (
	"archive/tar"
	"math"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

var manyBytes = func() string { // all that a name can hold, in 254 bytes
	var b strings.Builder
	for c := 1; c < 256; c++ {
		if c != '/' {
			b.WriteByte(byte(c))
		}
	}
	return b.String()
}()

// specCases are the examples of the OCI image spec (layer.md).
var specCases = []hardCase{
	{name: "initial layer", tar: entries(dir("./"), dir("./etc/"), file("./etc/my-app-config", "c"), dir("./bin/"),
		file("./bin/my-app-binary", "b"), file("./bin/my-app-tools", "t"))},
	{name: "changeset", tar: entries(dir("./etc/my-app.d/"), file("./etc/my-app.d/default.cfg", "d"), file("./bin/tool", "new"), file("./etc/.wh.config", ""))},
	{name: "whiteout of a file", tar: entries(file("./etc/.wh.old", "")), want: []string{"- etc/old"}},
	{name: "whiteout of a directory", tar: entries(file(".wh.a", "")), want: []string{"- a"}},
	{name: "explicit whiteout before what is new", theirs: "otherwise", // bar comes back
		tar:  entries(dir("a/"), file("a/.wh.b", ""), dir("a/b/"), dir("a/b/c/"), file("a/b/c/foo", "")),
		want: []string{"a d755 0:0", "a/b/c/foo -644 0:0 size=0 nlink=1", "- a/b/c/bar"}},
	{name: "opaque whiteout", tar: entries(dir("a/"), file("a/.wh..wh..opq", ""), dir("a/b/"), dir("a/b/c/"), file("a/b/c/foo", "")),
		want: []string{"a d755 0:0", "a/b/c/foo -644 0:0 size=0 nlink=1", "- a/b/c/bar", "- a/keep"}},
	{name: "opaque whiteout behind its siblings", tar: entries(dir("a/"), file("a/new", ""), file("a/.wh..wh..opq", ""))},
	{name: "hard links", tar: entries(file("h1", "x"), hardlink("h2", "h1"), hardlink("d/h3", "h2"))},
	{name: "replaced kinds", tar: entries(file("a", "file"), dir("file"), file("file/x", ""), symlink("replaced", "etc"))},
	{name: "nothing", tar: entries()},
}

var nameCases = []hardCase{
	{name: "absolute", tar: entries(dir("/abs1"), file("/abs1/x", ""), file("///abs2", ""))},
	{name: "parent of the root", tar: entries(file("../up", "")), refused: "points outside the layer"},
	{name: "parent of the root, absolute", tar: entries(file("/../up", "")), refused: "points outside the layer"},
	{name: "parent of the root within a name", tar: entries(file("x/../../up", "")), refused: "points outside the layer"},
	{name: "link out as a parent", tar: entries(symlink("out", "../../.."), file("out/x", "in")),
		want: []string{"out l777 0:0 -> ../../..", "x -644 0:0 size=2 nlink=1"}},
	{name: "dots and slashes", tar: entries(file("./x/./y//z", ""), file("x/../w", ""), dir("v/."))},
	{name: "255 bytes of any encoding", tar: entries(file(manyBytes+"x", ""), dir("d/"+manyBytes), symlink("l", manyBytes), hardlink("h", manyBytes+"x"))},
	{name: "255 bytes each, 4000 together", tar: entries(file(strings.Repeat(strings.Repeat("n", 255)+"/", 15)+"f", "x"))},
	{name: "256 bytes", tar: entries(file(strings.Repeat("n", 256), "")), refused: "256 bytes", theirs: "refuses"},
	{name: "file as a parent", tar: entries(file("f", ""), file("f/x", "")), refused: "not a directory", theirs: "refuses"},
	{name: "names that look like marks", tar: entries(file("wh.x", ""), file("x.wh.", ""), file(".w", ""), file("a/..wh.x", ""))},
	{name: "repeated", tar: entries(file("r", "one"), file("r", "three"), dir("d"), file("d/x", ""), dir("d"), file("d/y", ""))},
	{name: "repeated as another kind", tar: entries(dir("r"), file("r/x", ""), file("r", "now"), file("s", ""), dir("s"), file("s/x", ""), symlink("t", "a"), dir("t"), file("t/x", ""))},
	{name: "repeated with other attributes", tar: entries(dir("d"), ent{tar.Header{Name: "d", Typeflag: tar.TypeDir, Mode: 0o1700, Uid: 3}, ""},
		file("f", "x").xattr("user.a", "1"), file("f", "y").xattr("user.b", "2"))},
	{name: "a directory keeps attributes that a later entry does not have", theirs: "otherwise",
		tar: entries(dir("d").xattr("user.a", "1"), dir("d").xattr("user.b", "2")), want: []string{`d d755 0:0 user.b="2"`}},
}

var linkCases = []hardCase{
	{name: "through a link of this layer", tar: entries(dir("real"), symlink("l", "real"), file("l/x", "x"), symlink("l2", "/l"), file("l2/y", "y"))},
	{name: "through a link to nowhere", tar: entries(symlink("l", "not/there"), file("l/x", "x"))},
	{name: "through a chain", theirs: "otherwise", // it resolves ".." beside the link, not behind it
		want: []string{"d d755 0:0", "d/e d755 0:0", "d/e/x -644 0:0 size=0 nlink=1", "d/up l777 0:0 -> ../d/e", "one l777 0:0 -> d/up", "two l777 0:0 -> /one/."},
		tar:  entries(dir("d/e"), symlink("d/up", "../d/e"), symlink("one", "d/up"), symlink("two", "/one/."), file("two/x", ""))},
	{name: "through a link that is replaced", tar: entries(dir("r1"), dir("r2"), symlink("l", "r1"), file("l/x", ""), symlink("l", "r2"), file("l/y", ""))},
	{name: "a link below becomes a directory", tar: entries(file("lib/new", "")), want: []string{"lib d755 0:0", "lib/new -644 0:0 size=0 nlink=1"}},
	{name: "loop", tar: entries(symlink("p", "q"), symlink("q", "p"), file("p/x", "")), refused: "symbolic links", theirs: "refuses"},
	{name: "hard link before its target", theirs: "refuses", tar: entries(hardlink("h", "f"), hardlink("g", "h"), file("f", "x")),
		want: []string{"f -644 0:0 size=1 nlink=3", "g -644 0:0 size=1 nlink=3", "h -644 0:0 size=1 nlink=3"}},
	{name: "hard link to a symbolic link", tar: entries(symlink("s", "a"), hardlink("h", "s"))},
	{name: "hard link to a device", tar: entries(ent{tar.Header{Name: "c", Typeflag: tar.TypeChar, Mode: 0o644, Devmajor: 1, Devminor: 3}, ""}, hardlink("h", "c"))},
	{name: "hard link through a link", tar: entries(dir("d"), file("d/f", "x"), symlink("s", "d"), hardlink("s/h", "s/f"))},
	{name: "hard link, absolute and with dots", tar: entries(file("f", "x"), hardlink("h", "/f"), hardlink("i", "./a/../f"))},
	{name: "hard link whose target is replaced", tar: entries(file("f", "x"), hardlink("h", "f"), file("f", "y"))},
	{name: "hard link over a file", tar: entries(file("f", "x"), file("h", "old"), hardlink("h", "f"))},
	{name: "hard link out", tar: entries(hardlink("h", "../f")), refused: "not a path in the layer", theirs: "refuses"},
	{name: "hard link to what is only below", tar: entries(hardlink("h", "file")), refused: "not in the layer", theirs: "refuses"},
	{name: "hard link to a directory", tar: entries(dir("d"), hardlink("h", "d")), refused: "hard link to a directory", theirs: "refuses"},
	{name: "hard link with other attributes", theirs: "otherwise", // the link's header is applied to the file
		tar:  entries(file("f", "x"), ent{tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "f", Mode: 0o600, Uid: 5}, ""}),
		want: []string{"f -644 0:0 size=1 nlink=2", "h -644 0:0 size=1 nlink=2"}},
	{name: "links of all lengths", tar: entries(symlink("one", "x"), symlink("long", strings.Repeat("x/", 2047)), symlink("nul", " "), symlink("bytes", manyBytes))},
}

var whiteoutCases = []hardCase{
	{name: "of what is not there", theirs: "unreadable", // a name that ls shows and stat does not find
		tar: entries(file("new/.wh.nothing", ""), file(".wh.nothing", "")), want: []string{"new d755 0:0"}},
	{name: "behind a real file", theirs: "refuses", tar: entries(file("etc/old", "new"), file("etc/.wh.old", "")),
		want: []string{"etc/old -644 0:0 size=3 nlink=1"}},
	{name: "before a real file", tar: entries(file("etc/.wh.old", ""), file("etc/old", "new"))},
	{name: "before a directory", tar: entries(file(".wh.replaced", ""), dir("replaced"), file("replaced/z", "")), theirs: "otherwise", // x comes back
		want: []string{"replaced/z -644 0:0 size=0 nlink=1", "- replaced/x"}},
	{name: "twice", theirs: "refuses", tar: entries(file("etc/.wh.old", ""), file("etc/.wh.old", "")), want: []string{"- etc/old"}},
	{name: "through a link", tar: entries(dir("etc"), symlink("e", "etc"), file("e/.wh.old", ""))},
	{name: "opaque in the root", tar: entries(file(".wh..wh..opq", ""), file("only", "")), want: rootIsOpaque},
	{name: "opaque and whiteout", theirs: "unreadable", want: []string{"a d755 0:0", "- a/b", "- a/keep"}, tar: entries(dir("a"), file("a/.wh..wh..opq", ""), file("a/.wh.keep", ""))},
	{name: "opaque in a directory without an entry", tar: entries(file("a/.wh..wh..opq", ""), file("a/x", ""))},
	{name: "opaque below an opaque one", tar: entries(file("a/.wh..wh..opq", ""), file("a/b/.wh..wh..opq", ""), file("a/b/x", ""))},
	{name: "bookkeeping of AUFS", theirs: "otherwise", tar: entries(dir(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", "x"), file(".wh..wh.aufs", ""), file("f", "")),
		want: []string{"f -644 0:0 size=0 nlink=1"}},
	{name: "as a directory", tar: entries(dir("etc/.wh.old")), want: []string{"- etc/old"}},
	{name: "as a link", tar: entries(symlink("etc/.wh.old", "x")), want: []string{"- etc/old"}},
	{name: "with data", tar: entries(file("etc/.wh.old", "x")), refused: "whiteout with 1 bytes"},
	{name: "of nothing", tar: entries(file("etc/.wh.", "")), refused: `whiteout of ""`, theirs: "refuses"},
	{name: "of its directory", tar: entries(file("etc/.wh..", "")), refused: `whiteout of "."`, theirs: "refuses"},
	{name: "of the directory above", tar: entries(file("etc/.wh...", "")), refused: `whiteout of ".."`, theirs: "refuses"},
	{name: "with something in it", tar: entries(file("etc/.wh.x/y", "")), refused: "which is a whiteout"},
	{name: "device 0:0", tar: entries(ent{tar.Header{Name: "etc/old", Typeflag: tar.TypeChar, Mode: 0o600}, ""}), want: []string{"- etc/old"}},
}

// rootIsOpaque is everything below: overlayfs has no opaque root.
var rootIsOpaque = []string{"only -644 0:0 size=0 nlink=1"}

var attributeCases = []hardCase{
	{name: "modes", tar: entries(ent{tar.Header{Name: "s", Mode: 0o7777}, "x"}, ent{tar.Header{Name: "n", Mode: 0}, ""},
		ent{tar.Header{Name: "d", Typeflag: tar.TypeDir, Mode: 0o7000}, ""}, ent{tar.Header{Name: "type", Mode: 0o100644}, ""})},
	{name: "ids", tar: entries(ent{tar.Header{Name: "big", Mode: 0o644, Uid: 65536, Gid: 4294967294}, ""}, ent{tar.Header{Name: "s", Typeflag: tar.TypeSymlink, Linkname: "x", Uid: 1 << 31, Gid: 70000}, ""})},
	{name: "id beyond 32 bits", refused: "owner", // containerd takes what is left of it
		tar: entries(ent{tar.Header{Name: "x", Uid: math.MaxUint32 + 1}, ""})},
	{name: "times", tar: entries(ent{tar.Header{Name: "ns", ModTime: time.Unix(1, 999999999), Format: tar.FormatPAX}, ""}, ent{tar.Header{Name: "far", ModTime: time.Unix(1<<33, 5), Format: tar.FormatPAX}, ""})},
	{name: "times before 1970", tar: entries(ent{tar.Header{Name: "old", ModTime: time.Unix(-5, 0), Format: tar.FormatPAX}, ""})},
	{name: "devices", tar: entries(ent{tar.Header{Name: "c", Typeflag: tar.TypeChar, Mode: 0o620, Devmajor: 259, Devminor: 70000}, ""},
		ent{tar.Header{Name: "b", Typeflag: tar.TypeBlock, Mode: 0o660, Devmajor: 4095, Devminor: 1048575}, ""},
		ent{tar.Header{Name: "p", Typeflag: tar.TypeFifo, Mode: 0o622}, ""}, ent{tar.Header{Name: "b0", Typeflag: tar.TypeBlock}, ""})},
	{name: "attributes", tar: entries(file("f", "x").xattr("user.a", "1", "user.empty", "", "user.bytes", "\x00\xff\n=", "user."+strings.Repeat("n", 249), text(1, 1000)),
		dir("d").xattr("user.d", "2"))},
	{name: "capabilities", tar: entries(file("f", "x").xattr(capability, "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))},
	{name: "malformed capabilities", theirs: "refuses", refused: "malformed", tar: entries(file("f", "x").xattr(capability, "xxxx"))},
	{name: "access control lists", tar: entries(file("f", "x").xattr(aclAccess, string(posixACL(6, 7, 4))), dir("d").xattr(aclDefault, string(posixACL(6, 7, 4)), aclAccess, string(posixACL(7, 5, 4))))},
	{name: "access control list that says what the mode says", tar: entries(file("f", "x").xattr(aclAccess, acl), dir("d").xattr(aclDefault, acl))},
	{name: "access control list without entries", tar: entries(file("f", "x").xattr(aclAccess, acl[:4]))},
	{name: "access control list out of order", theirs: "refuses", refused: "out of order", tar: entries(file("f", "x").xattr(aclAccess, acl[:4]+acl[12:20]+acl[4:12]+acl[20:]))},
	{name: "access control list of version 1", tar: entries(file("f", "x").xattr(aclAccess, "\x01"+acl[1:]))},
	{name: "access control list that is cut off", theirs: "refuses", refused: "no layer may carry", tar: entries(file("f", "x").xattr(aclAccess, acl[:9]))},
	{name: "overlayfs' own attributes", tar: entries(dir("a").xattr("trusted.overlay.opaque", "y"), file("f", "x").xattr("trusted.x", "y")),
		want: []string{"a d755 0:0", "f -644 0:0 size=1 nlink=1"}},
	{name: "attributes of links", tar: entries(ent{tar.Header{Name: "s", Typeflag: tar.TypeSymlink, Linkname: "x", Mode: 0o777, PAXRecords: map[string]string{paxXattr + "user.a": "1"}}, ""})},
	{name: "parents without an entry", tar: entries(file("a/new/f", ""), file("brand/new/f", ""))},
}

// tarOf runs GNU tar over a tree.
func tarOf(args string, fill func(t testing.TB, d string)) func(testing.TB) []byte {
	return func(t testing.TB) []byte {
		t.Helper()
		d := t.TempDir()
		fill(t, d)
		src, err := exec.CommandContext(t.Context(), "tar", append(strings.Fields(args), "-C", d, "-c", ".")...).Output()
		require.NoError(t, err)
		return src
	}
}

// oneOfEach is a tree with a file of every kind.
func oneOfEach(t testing.TB, d string) {
	write(t, d+"/dir/"+strings.Repeat("n", 120)+"/file", text(1, 3000))
	write(t, d+"/second", text(2, 100))
	require.NoError(t, unix.Link(d+"/second", d+"/third"))
	require.NoError(t, unix.Symlink(strings.Repeat("t/", 90), d+"/link"))
	require.NoError(t, unix.Mkfifo(d+"/fifo", 0o600))
	require.NoError(t, unix.Mknod(d+"/chr", unix.S_IFCHR|0o600, int(unix.Mkdev(5, 1))))
	require.NoError(t, unix.Lchown(d+"/second", 70000, 1<<22))
	require.NoError(t, unix.Setxattr(d+"/second", "user.a", []byte("x"), 0))
}
