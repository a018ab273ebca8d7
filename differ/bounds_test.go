package differ

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// noData takes file data and keeps nothing.
type noData struct{}

func (noData) put(_ context.Context, r io.Reader, size int64) (int, error) {
	_, err := io.CopyN(io.Discard, r, size)
	return 0, err
}

// TestLayerLimits: whatever a layer makes us keep is counted, one below the limit is
// taken, and one more is refused.
func TestLayerLimits(t *testing.T) {
	some := func(n int, e func(name string) ent) []ent {
		var ents []ent
		for i := range n {
			ents = append(ents, e(strings.Repeat("x", i+1)))
		}
		return ents
	}
	many := func(n int, e ent) (ents []ent) { return some(n, func(string) ent { return e }) }
	deleted := func(name string) ent { return ent{tar.Header{Name: name, Typeflag: tar.TypeChar}, ""} }
	full := layerLimits()
	files, bytesOf := limits{full.entries, 5, full.kept}, func(n int) limits { return limits{full.entries, full.inodes, n} }
	for name, tc := range map[string]struct {
		most limits
		ents []ent // the last is too much
		want string
	}{
		"entries":             {limits{3, full.inodes, full.kept}, many(4, dir("d")), "layer has more than 3 tar entries, the most that a layer may have"},
		"files":               {files, some(5, func(s string) ent { return file(s, "1") }), "layer has more than 5 files (replaced ones counted), the"},
		"files, the same":     {files, many(5, file("a", "1")), "more than 5 files"},
		"links, the same":     {files, many(5, symlink("a", "b")), "more than 5 files"},
		"parents":             {files, append(many(1, file("a/b", "")), file("c/d/e", "")), "more than 5 files"},
		"whiteouts":           {files, some(5, func(s string) ent { return file(".wh."+s, "") }), "more than 5 files"},
		"device 0:0":          {files, []ent{deleted("a"), deleted("b"), file("c", "")}, "more than 5 files"},
		"names":               {bytesOf(2 * (nameCost + 4)), []ent{file("aaaa", ""), file("bbbb", ""), file("c", "")}, "layer has more than 40 bytes of names, link targets and attributes, the"},
		"names of parents":    {bytesOf(2*nameCost + 8), []ent{file("aaa/bbbbb", ""), dir("c")}, "bytes of names"},
		"names of hard links": {bytesOf(2*nameCost + 6), []ent{file("a", ""), hardlink("bbbbb", "a"), hardlink("c", "a")}, "bytes of names"},
		"targets":             {bytesOf(2*(nameCost+1) + 2*7), []ent{symlink("a", "/target"), file("b", ""), file("c", "")}, "bytes of names"},
		"attributes":          {bytesOf(2*(nameCost+1) + xattrCost + len("user.a") + 5), []ent{file("a", "").xattr("user.a", "value"), file("b", ""), file("c", "")}, "bytes of names"},
		"whiteout paths":      {bytesOf(2*(markCost+3) + nameCost + 1), append(some(1, func(string) ent { return file("d/.wh.x", "") }), file("d/.wh.y", ""), file("d/.wh.z", "")), "bytes of names"},
		"opaque paths":        {bytesOf(markCost + 2*nameCost + 3), []ent{dir("d"), file("d/.wh..wh..opq", ""), dir("e"), file("e/.wh..wh..opq", "")}, "bytes of names"},
		"waiting hard links":  {bytesOf(linkCost + 1 + 1 + 6), []ent{hardlink("a", "target"), hardlink("b", "target")}, "bytes of names"},
	} {
		t.Run(name, func(t *testing.T) {
			run := func(ents []ent) (*ingest, error) {
				ing := newIngest(noData{}, nil)
				ing.most = tc.most
				return ing, ing.run(t.Context(), bytes.NewReader(mkTar(t, ents...)))
			}
			if _, err := run(tc.ents[:len(tc.ents)-1]); err != nil {
				require.ErrorContains(t, err, "not in the layer", "what fails is that a target never comes")
			}
			_, err := run(tc.ents)
			require.ErrorContains(t, err, tc.want)
			var limit *LimitError
			require.ErrorAs(t, err, &limit)
		})
	}
	p := erofs.DefaultPolicy(0)
	require.Equal(t, limits{p.MaxNames, p.MaxInodes, int(p.MaxMeta / 2)}, newIngest(nil, nil).most)
}

// repeated reads as the same n times.
type repeated struct {
	what []byte
	n    int
	off  int
}

func (r *repeated) Read(p []byte) (int, error) {
	if r.n == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.what[r.off:])
	if r.off += n; r.off == len(r.what) {
		r.off = 0
		r.n--
	}
	return n, nil
}

// liveHeap returns how much memory is in use.
func liveHeap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestRepeatedEntries: a tar of a few kilobytes, compressed, has a million entries of
// the same name, or entries with a megabyte of PAX records. No more is kept than what
// they mean.
func TestRepeatedEntries(t *testing.T) {
	long := strings.Repeat("n", 101) // which is in a PAX record
	heavy := func(e ent) ent { return e.xattr("user.x", strings.Repeat("v", 400<<10)) }
	for name, tc := range map[string]struct {
		ents []ent
		n    int
	}{
		"whiteout":       {[]ent{file(".wh."+strings.Repeat("x", 80), "")}, 100000},
		"opaque":         {[]ent{file("d/"+opaqueName, "")}, 100000},
		"hard link":      {[]ent{hardlink("a", "b")}, 100000},
		"PAX, whiteouts": {paxed(50, func(s string) ent { return heavy(file(".wh."+s+long, "")) }), 1},
		"PAX, opaque":    {paxed(50, func(s string) ent { return heavy(file(s+long+"/"+opaqueName, "")) }), 1},
		"PAX, links":     {paxed(50, func(s string) ent { return heavy(hardlink(s+long, "b")) }), 1},
		"PAX, symlinks":  {paxed(50, func(s string) ent { return heavy(symlink(s, long)) }), 1},
	} {
		t.Run(name, func(t *testing.T) {
			src := mkTar(t, tc.ents...)
			src = src[:len(src)-1024]
			ing := newIngest(noData{}, nil)
			before := liveHeap()
			_ = ing.run(t.Context(), &repeated{what: src, n: tc.n}) // the target of the links never comes
			require.Less(t, liveHeap()-before, int64(1<<20))
			runtime.KeepAlive(ing)
			runtime.KeepAlive(src)
		})
	}
}

func paxed(n int, e func(string) ent) (ents []ent) {
	for i := range n {
		ents = append(ents, e(strings.Repeat("x", i+1)))
	}
	return ents
}
