package erofs

import (
	"bytes"
	"testing"
)

func TestWriteBasics(t *testing.T) {
	a := Attr{Mode: modeReg | 0o4750, UID: 1000, GID: 70000, Mtime: testTime.Unix(), MtimeNsec: 123456789}
	d := a
	d.Mode = modeDir | 0o1777
	checkAll(t, []wantFile{
		{path: "etc", attr: d},
		{path: "etc/passwd", attr: a, data: []byte("root:x:0:0\n"), xattrs: map[string]string{"user.a": "1", "security.b": ""}},
		{path: "etc/empty", attr: a},
		{path: "etc/link", attr: Attr{UID: 5}, target: "passwd"},
		{path: "usr/bin/hard", link: "etc/passwd"},
		{path: "usr/lib/big", attr: regAttr(0o644), data: bytes.Repeat([]byte("0123456"), 100000)},
	}, WriteOptions{})
}
