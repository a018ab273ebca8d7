package erofs

import (
	"fmt"
	"io"
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkWriteMillion builds a tree of a million inodes and writes its
// metadata. The peak of resident memory is that of the whole process.
func BenchmarkWriteMillion(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		t, err := millionBuilder().Tree()
		if err != nil {
			b.Fatal(err)
		}
		l, err := NewLayout(t, WriteOptions{})
		if err != nil {
			b.Fatal(err)
		}
		n, err := l.WriteMeta(io.Discard, 1<<40)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(n)/float64(t.Len()), "metabytes/inode")
	}
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(u.Maxrss)/1024, "MiB-peak-rss")
}

// millionBuilder holds 1,000,000 inodes: 10,000 directories of 99 files, with
// times and owners of their own and the same label on every tenth.
func millionBuilder() *Builder {
	b := NewBuilder()
	label := []byte("system_u:object_r:usr_t:s0\x00")
	addr := int64(0)
	for d := range 9999 {
		dir := fmt.Sprintf("usr/lib/node_modules/package-%02d/dist-%04d", d%100, d)
		for f := range 99 {
			a := Attr{Mode: modeReg | 0o644, UID: 1000, GID: 1000, Mtime: int64(1.7e9) + int64(f*d), MtimeNsec: uint32(f), Size: int64(f * 100)}
			i, err := b.Put(fmt.Sprintf("%s/component-%d.module.js", dir, f*37%99), a)
			if err != nil {
				panic(err)
			}
			if a.Size > 0 {
				b.SetExtents(i, []Extent{{Len: a.Size, Addr: addr}})
				addr += alignUp(a.Size, 4096)
			}
			if f%10 == 0 {
				if err := b.SetXattr(i, "security.selinux", label); err != nil {
					panic(err)
				}
			}
		}
	}
	return b
}
