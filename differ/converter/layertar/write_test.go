package layertar

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// image converts a tar to a raw image and parses it.
func image(t testing.TB, tarball []byte) ([]byte, *erofs.Tree) {
	t.Helper()
	var blob bytes.Buffer
	res, err := differ.Convert(t.Context(), bytes.NewReader(tarball), &blob, differ.Config{Form: differ.Raw, ChunkSize: 64 << 10, SpoolDir: t.TempDir()})
	require.NoError(t, err)
	img := blob.Bytes()[:res.ImageSize]
	parsed, err := erofs.Parse(bytes.NewReader(img), erofs.DefaultPolicy(res.ImageSize))
	require.NoError(t, err)
	return img, parsed.Tree
}

func export(t testing.TB, img []byte, tree *erofs.Tree) []byte {
	t.Helper()
	var out bytes.Buffer
	require.NoError(t, Write(t.Context(), &out, tree, bytes.NewReader(img)))
	return out.Bytes()
}

type entry struct {
	tar.Header
	body string
}

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if e.Typeflag == 0 {
			e.Typeflag = tar.TypeReg
		}
		e.Size = int64(len(e.body))
		e.Format = tar.FormatPAX
		require.NoError(t, w.WriteHeader(&e.Header), e.Name)
		_, err := w.Write([]byte(e.body))
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

func hard(t testing.TB) []byte {
	at := time.Unix(1_700_000_000, 123_456_789)
	long := strings.Repeat("n", 255)
	sparse := strings.Repeat("\x00", 300<<10) + "end" + strings.Repeat("\x00", 200<<10)
	return archive(t,
		entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o700, Uid: 5, ModTime: at}},
		entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: "dir/", Mode: 0o1777, Uid: 70_000, Gid: 3_000_000, ModTime: at, PAXRecords: map[string]string{paxXattr + "user.d": "v"}}},
		entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: "a-link", Linkname: "dir/file"}},
		entry{Header: tar.Header{Name: "dir/file", Mode: 0o4755, ModTime: at, PAXRecords: map[string]string{
			paxXattr + "user.a": "1", paxXattr + "security.capability": "\x01\x00\x00\x02\x00 \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		}}, body: "content"},
		entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: "z-link", Linkname: "dir/file"}},
		entry{Header: tar.Header{Name: "big", Mode: 0o600}, body: strings.Repeat("0123456789", 40_000)},
		entry{Header: tar.Header{Name: "sparse", Mode: 0o644}, body: sparse},
		entry{Header: tar.Header{Name: "empty", Mode: 0o644}},
		entry{Header: tar.Header{Name: "dir/" + long, Mode: 0o644}, body: "x"},
		entry{Header: tar.Header{Name: "not-\xff-utf8", Mode: 0o644}, body: "y"},
		entry{Header: tar.Header{Name: strings.Repeat(long+"/", 5) + "deep", Mode: 0o644}, body: "z"},
		entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "sym", Linkname: strings.Repeat("t/", 500) + "é", ModTime: at}},
		entry{Header: tar.Header{Typeflag: tar.TypeChar, Name: "tty", Mode: 0o620, Devmajor: 4, Devminor: 300}},
		entry{Header: tar.Header{Typeflag: tar.TypeBlock, Name: "disk", Mode: 0o660, Devmajor: 259, Devminor: 70_000}},
		entry{Header: tar.Header{Typeflag: tar.TypeFifo, Name: "pipe", Mode: 0o644}},
		entry{Header: tar.Header{Name: "dir/.wh.gone"}},
		entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: "opaque/", Mode: 0o755}},
		entry{Header: tar.Header{Name: "opaque/.wh..wh..opq"}},
		entry{Header: tar.Header{Name: "opaque/new", Mode: 0o644}, body: "new"},
		entry{Header: tar.Header{Name: "replaced/inside", Mode: 0o644}},
		entry{Header: tar.Header{Name: ".wh.replaced"}},
		entry{Header: tar.Header{Name: ".wh.top"}},
	)
}

// TestThereAndBack converts the tar of hard cases, writes the tar of what came
// out, and converts that: the image must be the same to the last byte.
func TestThereAndBack(t *testing.T) {
	img, tree := image(t, hard(t))
	back := export(t, img, tree)
	again, _ := image(t, back)
	require.True(t, bytes.Equal(img, again), "the images differ")
	require.Equal(t, back, export(t, img, tree), "the same tree gives the same tar")
}

func TestFormOfEntries(t *testing.T) {
	img, tree := image(t, hard(t))
	r := tar.NewReader(bytes.NewReader(export(t, img, tree)))
	var names []string
	got := map[string]*tar.Header{}
	for {
		hdr, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		names = append(names, hdr.Name)
		got[hdr.Name] = hdr
		for key := range hdr.PAXRecords {
			require.NotContains(t, key, "trusted.")
		}
	}
	require.Equal(t, "./", names[0])
	require.Equal(t, int64(0o700), got["./"].Mode)
	require.Equal(t, byte(tar.TypeReg), got["a-link"].Typeflag, "the first name has the content")
	require.Equal(t, "a-link", got["dir/file"].Linkname)
	require.Equal(t, "a-link", got["z-link"].Linkname)
	for _, link := range []string{"dir/file", "z-link"} {
		require.Equal(t, byte(tar.TypeLink), got[link].Typeflag)
		require.Equal(t, got["a-link"].ModTime, got[link].ModTime, "an unpacker gives it to the file")
		require.Equal(t, got["a-link"].Mode, got[link].Mode)
		require.Equal(t, got["a-link"].PAXRecords[paxXattr+"security.capability"], got[link].PAXRecords[paxXattr+"security.capability"])
	}
	require.EqualValues(t, 300, got["tty"].Devminor)
	require.EqualValues(t, 70_000, got["disk"].Devminor)
	for _, marker := range []string{"dir/.wh.gone", ".wh.top", "opaque/.wh..wh..opq", "replaced/.wh..wh..opq"} {
		require.Contains(t, got, marker)
		require.Zero(t, got[marker].Size)
	}
	require.NotContains(t, got, ".wh.replaced", "what is opaque needs no whiteout beside it")
}

func TestPlainRootHasNoEntry(t *testing.T) {
	img, tree := image(t, archive(t, entry{Header: tar.Header{Name: "f", Mode: 0o644}}))
	r := tar.NewReader(bytes.NewReader(export(t, img, tree)))
	hdr, err := r.Next()
	require.NoError(t, err)
	require.Equal(t, "f", hdr.Name)
}

// TestHolesAreNotRead gives the data a reader that knows where no data is.
func TestHolesAreNotRead(t *testing.T) {
	const size = 8 << 20
	img, tree := image(t, archive(t, entry{Header: tar.Header{Name: "hole", Mode: 0o644}, body: strings.Repeat("\x00", size)}))
	var out bytes.Buffer
	require.NoError(t, Write(t.Context(), &out, tree, failing{t}))
	require.Greater(t, out.Len(), size)
	require.Less(t, len(img), size)
}

type failing struct{ t *testing.T }

func (f failing) ReadAt([]byte, int64) (int, error) {
	f.t.Error("a hole was read")
	return 0, io.ErrUnexpectedEOF
}

var errBroken = errors.New("broken")

type broken struct{ after int }

func (b *broken) Write(p []byte) (int, error) {
	if b.after -= len(p); b.after < 0 {
		return 0, errBroken
	}
	return len(p), nil
}

func (b *broken) ReadAt([]byte, int64) (int, error) { return 0, errBroken }

func TestErrorsAndCancellation(t *testing.T) {
	img, tree := image(t, hard(t))
	for _, after := range []int{0, 2_000, 100_000} {
		require.ErrorIs(t, Write(t.Context(), &broken{after}, tree, bytes.NewReader(img)), errBroken)
	}
	require.ErrorIs(t, Write(t.Context(), io.Discard, tree, &broken{}), errBroken)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, Write(ctx, io.Discard, tree, bytes.NewReader(img)), context.Canceled)
}

// TestWhatNoTarHolds builds trees that a tar of ours never gives.
func TestWhatNoTarHolds(t *testing.T) {
	for name, build := range map[string]func(b *erofs.Builder) error{
		"taken for a whiteout": func(b *erofs.Builder) error {
			_, err := b.Put(".wh.file", erofs.Attr{Mode: 0o100644})
			return err
		},
		"no sockets": func(b *erofs.Builder) error {
			_, err := b.Put("socket", erofs.Attr{Mode: 0o140644})
			return err
		},
		"cannot name the attribute": func(b *erofs.Builder) error {
			i, err := b.Put("file", erofs.Attr{Mode: 0o100644})
			if err != nil {
				return err
			}
			return b.SetXattr(i, "user.a=b", []byte("x"))
		},
	} {
		b := erofs.NewBuilder()
		require.NoError(t, build(b), name)
		tree, err := b.Tree()
		require.NoError(t, err)
		err = Write(t.Context(), io.Discard, tree, bytes.NewReader(nil))
		var entryErr *EntryError
		require.ErrorAs(t, err, &entryErr, name)
		require.ErrorContains(t, err, name)
	}
}

// describeTree lists everything that a tar can say of a tree.
func describeTree(t testing.TB, tree *erofs.Tree, img []byte) []string {
	var out []string
	ids := map[erofs.Inode]int{}
	require.NoError(t, tree.Walk(func(path []byte, i erofs.Inode) error {
		if _, ok := ids[i]; !ok {
			ids[i] = len(ids)
		}
		var xattrs []string
		for k, v := range tree.Xattrs(i) {
			if string(k) != xattrOrigin {
				xattrs = append(xattrs, fmt.Sprintf("%q=%q", k, v))
			}
		}
		var data []byte
		for _, x := range tree.Extents(i) {
			if x.Addr == erofs.HoleAddr {
				data = append(data, make([]byte, x.Len)...)
			} else {
				data = append(data, img[x.Addr:x.Addr+x.Len]...)
			}
		}
		a := tree.Attr(i)
		if a.IsWhiteout() {
			a, xattrs = erofs.Attr{Mode: unix.S_IFCHR}, nil // a whiteout has no attributes that count
		}
		out = append(out, fmt.Sprintf("%q %d %+v %v %q %x", path, ids[i], a, xattrs, tree.Target(i), data))
		return nil
	}))
	return out
}

// FuzzThereAndBack converts any tar, writes the tar of the image and converts
// that: nothing may be lost, added or changed.
func FuzzThereAndBack(f *testing.F) {
	f.Add(archive(f, entry{Header: tar.Header{Name: "d/f", Mode: 0o644}, body: "x"}, entry{Header: tar.Header{Name: ".wh.y"}}))
	f.Add(archive(f, entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: "a", Linkname: "b"}}, entry{Header: tar.Header{Name: "b"}}))
	f.Add(archive(f, entry{Header: tar.Header{Typeflag: tar.TypeChar, Name: "c", Mode: 0o644}}, entry{Header: tar.Header{Name: "x/.wh..wh..opq"}}))
	spool := f.TempDir()
	f.Fuzz(func(t *testing.T, tarball []byte) {
		// A sparse member may claim terabytes of zeros.
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		convert := func(b []byte) ([]byte, *erofs.Tree, error) {
			var blob bytes.Buffer
			cfg := differ.Config{Form: differ.Raw, ChunkSize: 8192, SpoolDir: spool, Workers: 1}
			res, err := differ.Convert(ctx, bytes.NewReader(b), &blob, cfg)
			if err != nil {
				return nil, nil, err
			}
			img := blob.Bytes()[:res.ImageSize]
			parsed, err := erofs.Parse(bytes.NewReader(img), erofs.DefaultPolicy(res.ImageSize))
			require.NoError(t, err)
			return img, parsed.Tree, nil
		}
		img, tree, err := convert(tarball)
		if err != nil {
			return
		}
		var total int64
		for i := range tree.Len() {
			total += tree.Attr(erofs.Inode(i)).Size
		}
		if total > 1<<20 {
			return
		}
		var back bytes.Buffer
		require.NoError(t, Write(t.Context(), &back, tree, bytes.NewReader(img)))
		again, same, err := convert(back.Bytes())
		if errors.Is(err, context.DeadlineExceeded) {
			return
		}
		require.NoError(t, err)
		require.Equal(t, describeTree(t, tree, img), describeTree(t, same, again))
	})
}
