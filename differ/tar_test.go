package differ

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const rootLine = ". d755 0:0"

// acl is a list that says no more than mode 0644.
const acl = "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x04\x00\x04\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff"

// TestEntries holds the decisions of doc.go against a kernel mount.
func TestEntries(t *testing.T) {
	longName := strings.Repeat("n", 255)
	for _, tc := range []struct {
		name string
		ents []ent
		want []string // all files but the root, unless one says "."
	}{
		{"empty", nil, nil},
		{"root attributes", []ent{{tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o1777, Uid: 5, Gid: 6}, ""}, file("./a", "x")},
			[]string{". d1777 5:6", "a -644 0:0 size=1 nlink=1"}},
		{"leading slash and dots", []ent{file("/a", "x"), file("./b", ""), file("c/../d", "1"), file("//e//f", "2")},
			[]string{"a -644 0:0 size=1 nlink=1", "b -644 0:0 size=0 nlink=1", "d -644 0:0 size=1 nlink=1", "e d755 0:0", "e/f -644 0:0 size=1 nlink=1"}},
		{"missing parents", []ent{file("a/b/c", "x")}, []string{"a d755 0:0", "a/b d755 0:0", "a/b/c -644 0:0 size=1 nlink=1"}},
		{"parent after child", []ent{file("a/c", "x"), {tar.Header{Name: "a", Typeflag: tar.TypeDir, Mode: 0o700, Uid: 9}, ""}},
			[]string{"a d700 9:0", "a/c -644 0:0 size=1 nlink=1"}},
		{"later file wins", []ent{file("a", "old"), file("a", "newer")}, []string{"a -644 0:0 size=5 nlink=1"}},
		{"file over directory", []ent{file("a/b", "x"), file("a", "y")}, []string{"a -644 0:0 size=1 nlink=1"}},
		{"directory over file", []ent{file("a", "y"), dir("a"), file("a/b", "x")}, []string{"a d755 0:0", "a/b -644 0:0 size=1 nlink=1"}},
		{"directory over link to directory", []ent{dir("a"), symlink("b", "a"), dir("b"), file("b/x", "")},
			[]string{"a d755 0:0", "b d755 0:0", "b/x -644 0:0 size=0 nlink=1"}},
		{"through a link", []ent{dir("usr/lib"), symlink("lib", "usr/lib"), file("lib/x", "1")},
			[]string{"lib l777 0:0 -> usr/lib", "usr d755 0:0", "usr/lib d755 0:0", "usr/lib/x -644 0:0 size=1 nlink=1"}},
		{"through a link whose target is missing", []ent{symlink("lib", "/usr/lib"), file("lib/x", "1")},
			[]string{"lib l777 0:0 -> /usr/lib", "usr d755 0:0", "usr/lib d755 0:0", "usr/lib/x -644 0:0 size=1 nlink=1"}},
		{"a link cannot leave the root", []ent{symlink("l", "../../../etc"), file("l/x", "1")},
			[]string{"etc d755 0:0", "etc/x -644 0:0 size=1 nlink=1", "l l777 0:0 -> ../../../etc"}},
		{"link replaced between entries", []ent{dir("a"), symlink("l", "a"), file("l/x", "1"), dir("b"), symlink("l", "b"), file("l/y", "1")},
			[]string{"a d755 0:0", "a/x -644 0:0 size=1 nlink=1", "b d755 0:0", "b/y -644 0:0 size=1 nlink=1", "l l777 0:0 -> b"}},
		{"hard links", []ent{file("a", "xy"), hardlink("b", "a"), hardlink("d/c", "/./b")},
			[]string{"a -644 0:0 size=2 nlink=3", "b -644 0:0 size=2 nlink=3", "d d755 0:0", "d/c -644 0:0 size=2 nlink=3"}},
		{"hard link before its target", []ent{hardlink("b", "c"), hardlink("c", "a"), file("a", "xy")},
			[]string{"a -644 0:0 size=2 nlink=3", "b -644 0:0 size=2 nlink=3", "c -644 0:0 size=2 nlink=3"}},
		{"two early hard links", []ent{hardlink("x", "a"), hardlink("x", "b"), file("a", "1"), file("b", "22")},
			[]string{"a -644 0:0 size=1 nlink=1", "b -644 0:0 size=2 nlink=2", "x -644 0:0 size=2 nlink=2"}},
		{"hard link to itself", []ent{file("a", "xy"), hardlink("a", "a")}, []string{"a -644 0:0 size=2 nlink=1"}},
		{"hard link keeps the replaced file", []ent{file("a", "xy"), hardlink("b", "a"), file("a", "z")},
			[]string{"a -644 0:0 size=1 nlink=1", "b -644 0:0 size=2 nlink=1"}},
		{"early hard link gives way to a later file", []ent{hardlink("b", "a"), file("b", "own"), file("a", "xy")},
			[]string{"a -644 0:0 size=2 nlink=1", "b -644 0:0 size=3 nlink=1"}},
		{"hard link to a symbolic link", []ent{symlink("a", "nowhere"), hardlink("b", "a")},
			[]string{"a l777 0:0 -> nowhere", "b l777 0:0 -> nowhere"}},
		{"hard link through a link", []ent{file("d/f", "1"), symlink("l", "d"), hardlink("h", "l/f")},
			[]string{"d d755 0:0", "d/f -644 0:0 size=1 nlink=2", "h -644 0:0 size=1 nlink=2", "l l777 0:0 -> d"}},
		{"whiteout", []ent{dir("d"), file("d/.wh.x", "")}, []string{`d d755 0:0 trusted.overlay.origin=""`, "d/x c0 0:0 dev=0:0"}},
		{"whiteout in the root", []ent{file(".wh.x", "")}, []string{`. d755 0:0 trusted.overlay.origin=""`, "x c0 0:0 dev=0:0"}},
		{"real file beats whiteout, before", []ent{file("x", "1"), file(".wh.x", "")}, []string{"x -644 0:0 size=1 nlink=1"}},
		{"real file beats whiteout, after", []ent{file(".wh.x", ""), file("x", "1")}, []string{"x -644 0:0 size=1 nlink=1"}},
		{"deleted and made again", []ent{file(".wh.x", ""), dir("x"), file("x/y", "")},
			[]string{`x d755 0:0 trusted.overlay.opaque="y"`, "x/y -644 0:0 size=0 nlink=1"}},
		{"whiteout in a replaced directory", []ent{file("d/.wh.x", ""), file("d", "1")}, []string{"d -644 0:0 size=1 nlink=1"}},
		{"opaque keeps siblings", []ent{file("d/a", ""), file("d/.wh..wh..opq", ""), file("d/b", ""), dir("d")},
			[]string{`d d755 0:0 trusted.overlay.opaque="y"`, "d/a -644 0:0 size=0 nlink=1", "d/b -644 0:0 size=0 nlink=1"}},
		{"AUFS bookkeeping", []ent{file(".wh..wh.aufs", ""), dir(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", "x"), file("a", "")},
			[]string{"a -644 0:0 size=0 nlink=1"}},
		{"devices", []ent{
			{tar.Header{Name: "c", Typeflag: tar.TypeChar, Mode: 0o620, Devmajor: 259, Devminor: 70000}, ""},
			{tar.Header{Name: "b", Typeflag: tar.TypeBlock, Mode: 0o660, Devmajor: 8, Devminor: 1, Gid: 6}, ""},
			{tar.Header{Name: "p", Typeflag: tar.TypeFifo, Mode: 0o600}, ""}},
			[]string{"b b660 0:6 dev=8:1", "c c620 0:0 dev=259:70000", "p p600 0:0"}},
		{"device 0:0 is a whiteout", []ent{{tar.Header{Name: "d/w", Typeflag: tar.TypeChar}, ""}},
			[]string{`d d755 0:0 trusted.overlay.origin=""`, "d/w c0 0:0 dev=0:0"}},
		{"xattrs", []ent{file("f", "").xattr("user.a", "1", "security.capability", "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
			"trusted.overlay.opaque", "y", "trusted.x", "y", "system.other", "z", "odd", "z"),
			{tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "f", Mode: 0o777, PAXRecords: map[string]string{paxXattr + "user.b": "2"}}, ""},
			dir("d").xattr("trusted.overlay.redirect", "/etc", "user.c", "\x00\xff")},
			[]string{`d d755 0:0 user.c="\x00\xff"`,
				`f -644 0:0 size=0 nlink=1 security.capability="\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" user.a="1"`,
				"l l777 0:0 -> f"}},
		{"access control lists", []ent{file("f", "").xattr(aclAccess, string(posixACL(6, 7, 4)), aclDefault, acl)},
			[]string{`f -644 0:0 size=0 nlink=1 system.posix_acl_access=` + fmt.Sprintf("%q", string(posixACLMask(6, 7, 4, 4)))}},
		{"lists that say what the mode says, and empty ones", []ent{file("f", "").xattr(aclAccess, acl), file("g", "").xattr(aclAccess, ""), dir("d").xattr(aclDefault, "\x02\x00\x00\x00")},
			[]string{"d d755 0:0", "f -644 0:0 size=0 nlink=1", "g -644 0:0 size=0 nlink=1"}},
		{"long names and large ids", []ent{{tar.Header{Name: longName + "/" + longName, Mode: 0o4755, Uid: 1 << 31, Gid: 4294967294}, "x"}},
			[]string{longName + " d755 0:0", longName + "/" + longName + " -4755 2147483648:4294967294 size=1 nlink=1"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			res, blob := convertBytes(t, mkTar(t, tc.ents...), Config{})
			want := tc.want
			if len(want) == 0 || !strings.HasPrefix(want[0], ". ") {
				want = append([]string{rootLine}, want...)
			}
			require.Equal(t, want, list(t, mountImage(t, imageOf(t, blob, res))))
		})
	}
}

// TestRefused names what cannot be part of a layer.
func TestRefused(t *testing.T) {
	for _, tc := range []struct {
		name string
		ents []ent
		want string
	}{
		{"parent of the root", []ent{file("../x", "")}, "points outside the layer"},
		{"parent of the root within a name", []ent{file("a/../../x", "")}, "points outside the layer"},
		{"file as parent", []ent{file("a", ""), file("a/b", "")}, `lies in "a", which is not a directory`},
		{"loop", []ent{symlink("a", "b"), symlink("b", "a"), file("a/x", "")}, "more than 255 symbolic links"},
		{"missing target", []ent{hardlink("a", "b")}, `hard link to "b", which is not in the layer`},
		{"loop of hard links", []ent{hardlink("a", "b"), hardlink("b", "a")}, "which is not in the layer"},
		{"hard link out", []ent{hardlink("a", "../b")}, "not a path in the layer"},
		{"hard link to a directory", []ent{dir("d"), hardlink("a", "d")}, "hard link to a directory"},
		{"whiteout with data", []ent{file(".wh.a", "x")}, "whiteout with 1 bytes"},
		{"whiteout of nothing", []ent{file("d/.wh.", "")}, `whiteout of ""`},
		{"whiteout of the parent", []ent{file("d/.wh...", "")}, `whiteout of ".."`},
		{"below a whiteout", []ent{file(".wh.a/b", "")}, "which is a whiteout"},
		{"minor", []ent{{tar.Header{Name: "c", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 1 << 20}, ""}}, "device number 1:1048576"},
		{"unknown type", []ent{{tar.Header{Name: "z", Typeflag: 'Z'}, ""}}, `has type 'Z'`},
		{"contiguous file", []ent{{tar.Header{Name: "z", Typeflag: tar.TypeCont}, ""}}, `has type '7'`},
		{"bad access control list", []ent{file("f", "").xattr(aclAccess, "\x02\x00\x00\x00x")}, "no layer may carry"},
		{"list without an end", []ent{file("f", "").xattr(aclAccess, string(posixACL(6, 7, 4)[:36]))}, "its entries are"},
		{"default list of nonsense", []ent{dir("d").xattr(aclDefault, acl[:20]+acl[12:20]+acl[20:])}, "out of order"},
		{"capabilities of nonsense", []ent{file("f", "").xattr(capability, "\x01\x00\x00\x02\x00")}, "malformed"},
		{"capabilities of the past", []ent{file("f", "").xattr(capability, "\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00")}, "malformed"},
		{"more attributes than the parser allows", []ent{file("f", "").xattr(manyXattrs(1023)...)}, "more than 1022"},
		{"name of 256 bytes", []ent{file(strings.Repeat("n", 256), "")}, "256 bytes"},
		{"path too long", []ent{file(strings.Repeat("n/", 2100)+"f", "")}, "longer than 4095"},
		{"root as a file", []ent{symlink("/", "x")}, "root must be a directory"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Convert(t.Context(), bytes.NewReader(mkTar(t, tc.ents...)), io.Discard, Config{SpoolDir: t.TempDir()})
			require.ErrorContains(t, err, tc.want)
			require.ErrorContains(t, err, "tar entry")
		})
	}
}

// TestTimes checks what no tar command writes: time stamps outside of the range.
func TestTimes(t *testing.T) {
	at := func(name string, tm time.Time) ent {
		return ent{tar.Header{Name: name, Mode: 0o644, ModTime: tm, Format: tar.FormatPAX}, ""}
	}
	res, blob := convertBytes(t, mkTar(t,
		at("ns", time.Unix(1700000000, 123456789)),
		at("old", time.Unix(-5, 0)),
		at("late", time.Unix(1<<33, 1)),
		at("never", time.Unix(1<<40, 0)),
	), Config{})
	m := mountImage(t, imageOf(t, blob, res))
	for name, want := range map[string]int64{"ns": 1700000000123456789, "old": 0, "late": 1<<33*1e9 + 1, "never": 0} {
		var st unix.Stat_t
		require.NoError(t, unix.Lstat(m+"/"+name, &st))
		require.Equal(t, want, st.Mtim.Nano(), name)
	}
}

// TestGlobalHeader: what it says would otherwise hold for all later entries.
func TestGlobalHeader(t *testing.T) {
	global := ent{tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "abc"}}, ""}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	require.NoError(t, w.WriteHeader(&global.Header))
	require.NoError(t, w.Close())
	src := append(buf.Bytes()[:buf.Len()-1024], mkTar(t, file("a", "1"))...)
	res, blob := convertBytes(t, src, Config{})
	require.Equal(t, []string{rootLine, "a -644 0:0 size=1 nlink=1"}, list(t, mountImage(t, imageOf(t, blob, res))))
}

// manyXattrs are n attributes for ent.xattr.
func manyXattrs(n int) (kv []string) {
	for i := range n {
		kv = append(kv, fmt.Sprintf("user.%d", i), "")
	}
	return kv
}
