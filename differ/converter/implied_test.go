package converter_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

func rawTar(t *testing.T, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		require.NoError(t, w.WriteHeader(&h))
		_, err := w.Write(make([]byte, h.Size))
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

// leaveOut returns the tars of an image whose upper layers name files in directories
// that only lower layers describe. Those have data, and many files.
func leaveOut(t *testing.T) [][]byte {
	old := time.Unix(1_000_000, 5)
	dir := func(name string, mode int64, uid int) tar.Header {
		return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode, Uid: uid, Gid: uid, ModTime: old, Format: tar.FormatPAX}
	}
	file := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600} }
	lowest := []tar.Header{dir("tmp", 0o1777, 7), dir("gone", 0o700, 8), dir("gone/sub", 0o711, 8), dir("fresh", 0o750, 9), dir("fresh/sub", 0o751, 9)}
	for i := range 500 {
		f := file(fmt.Sprintf("files/%d", i))
		f.Size = 5000
		lowest = append(lowest, f)
	}
	return [][]byte{
		rawTar(t, lowest...),
		rawTar(t, file(".wh.gone"), dir("fresh", 0o755, 1), file("fresh/.wh..wh..opq")),
		rawTar(t, file("tmp/x"), file("gone/sub/x"), file("fresh/sub/x"), file("never/x")),
	}
}

// imageOf puts an image of these layers into the layout.
func (l *layout) imageOf(layers []ocispec.Descriptor, ids []digest.Digest) {
	config := map[string]any{"os": "linux", "architecture": "amd64", "rootfs": map[string]any{"type": "layers", "diff_ids": ids}}
	l.tag(map[string]ocispec.Descriptor{"x": l.manifest(l.addJSON(ocispec.MediaTypeImageConfig, config), layers)})
}

// checkImplied holds the top layer against what the tars of leaveOut mean.
func checkImplied(t *testing.T, to string, res converter.Result) {
	t.Helper()
	top := topLayer(t, to, res)
	got := map[string]erofs.Attr{}
	require.NoError(t, top.Walk(func(path []byte, i erofs.Inode) error {
		a := top.Attr(i)
		a.Size = 0
		got[string(path)] = a
		return nil
	}))
	inherited := erofs.Attr{Mode: 0o041777, UID: 7, GID: 7, Mtime: 1_000_000, MtimeNsec: 5}
	plain := erofs.Attr{Mode: 0o040755}
	require.Equal(t, inherited, got["tmp"])
	require.Equal(t, plain, got["gone"], "what a layer between deleted is new")
	require.Equal(t, plain, got["gone/sub"])
	require.Equal(t, erofs.Attr{Mode: 0o040755, UID: 1, GID: 1, Mtime: 1_000_000, MtimeNsec: 5}, got["fresh"])
	require.Equal(t, plain, got["fresh/sub"], "below an opaque directory too")
	require.Equal(t, plain, got["never"])
}

func TestDirectoriesOfLowerLayersKeepTheirAttributes(t *testing.T) {
	l := newLayout(t)
	var layers []ocispec.Descriptor
	var ids []digest.Digest
	for _, b := range leaveOut(t) {
		layers = append(layers, l.add(ocispec.MediaTypeImageLayer, b))
		ids = append(ids, digest.FromBytes(b))
	}
	l.imageOf(layers, ids)
	for _, form := range []differ.Form{differ.Zstd, differ.Raw} {
		opts := host
		opts.Layer.Form, opts.Parallel = form, 1
		for range 2 { // one layer at a time and all at once
			to := "oci:" + t.TempDir()
			res, err := run(t, "oci:"+l.dir, to, opts)
			require.NoError(t, err)
			checkImplied(t, to, res)
			opts.Parallel = 4
		}
	}
}

// TestDirectoriesOfCarriedLayersKeepTheirAttributes has a tar layer on an image that
// was converted before, as a build on a converted base gives it.
func TestDirectoriesOfCarriedLayersKeepTheirAttributes(t *testing.T) {
	tars := leaveOut(t)
	for _, form := range []differ.Form{differ.Zstd, differ.Raw} {
		l, base := newLayout(t), newLayout(t)
		var layers []ocispec.Descriptor
		var ids []digest.Digest
		for _, b := range tars[:2] {
			layers = append(layers, l.add(ocispec.MediaTypeImageLayer, b))
			ids = append(ids, digest.FromBytes(b))
		}
		l.imageOf(layers, ids)
		opts := host
		opts.Layer.Form = form
		at := "oci:" + base.dir
		_, err := run(t, "oci:"+l.dir, at, opts)
		require.NoError(t, err)
		var m ocispec.Manifest
		fetchJSON(t, at, root(t, at), &m)
		var config ocispec.Image
		fetchJSON(t, at, m.Config, &config)
		top := base.add(ocispec.MediaTypeImageLayer, tars[2])
		image := func() { base.imageOf(append(m.Layers, top), append(config.RootFS.DiffIDs, top.Digest)) }
		image()

		to := "oci:" + t.TempDir()
		res, err := run(t, at, to, opts)
		require.NoError(t, err)
		require.True(t, res.Images[0].Layers[0].Reused)
		checkImplied(t, to, res)

		broken := fetch(t, at, m.Layers[0])
		if form == differ.Raw {
			odd := bytes.Clone(broken)
			odd[1024]++ // the superblock's magic
			other := base.add(m.Layers[0].MediaType, odd)
			other.Annotations = m.Layers[0].Annotations
			base.imageOf([]ocispec.Descriptor{other, m.Layers[1], top}, []digest.Digest{other.Digest, config.RootFS.DiffIDs[1], top.Digest})
			odder, err := run(t, at, "oci:"+t.TempDir(), opts)
			require.NoError(t, err)
			require.Contains(t, strings.Join(odder.Warnings, "\n"), "cannot be read, so that directories of it")
		}
		image()
		broken[len(broken)/2]++
		require.NoError(t, os.WriteFile(filepath.Join(base.dir, "blobs/sha256", m.Layers[0].Digest.Encoded()), broken, 0o644))
		_, err = run(t, at, "oci:"+t.TempDir(), opts)
		require.Error(t, err)
	}
}

// topLayer parses the last layer that a conversion wrote.
func topLayer(t *testing.T, at string, res converter.Result) *erofs.Tree {
	t.Helper()
	lr := res.Images[0].Layers[len(res.Images[0].Layers)-1]
	b := fetch(t, at, ocispec.Descriptor{Digest: lr.Digest, Size: lr.Size})
	if lr.Digest != lr.DiffID {
		dec, err := zstd.NewReader(bytes.NewReader(b))
		require.NoError(t, err)
		defer dec.Close()
		b, err = io.ReadAll(dec)
		require.NoError(t, err)
	}
	p, err := erofs.Parse(bytes.NewReader(b[:lr.ImageSize]), erofs.DefaultPolicy(lr.ImageSize))
	require.NoError(t, err)
	return p.Tree
}

// TestResumedLayersAnswerForTheirDirectories converts a layer whose directories
// only a layer describes that an earlier run converted.
func TestResumedLayersAnswerForTheirDirectories(t *testing.T) {
	lower := rawTar(t, tar.Header{Typeflag: tar.TypeDir, Name: "dir", Mode: 0o1777, Uid: 7})
	upper := rawTar(t, tar.Header{Typeflag: tar.TypeReg, Name: "dir/x", Mode: 0o600})
	l := newLayout(t)
	layers := []ocispec.Descriptor{l.add(ocispec.MediaTypeImageLayer, lower), l.add(ocispec.MediaTypeImageLayer, upper)}
	l.imageOf(layers, []digest.Digest{layers[0].Digest, layers[1].Digest})
	want, err := run(t, "oci:"+l.dir, "oci:"+t.TempDir(), host)
	require.NoError(t, err)

	opts, to := host, "oci:"+t.TempDir()
	opts.KeepDir = t.TempDir()
	_, err = run(t, "oci:"+l.dir, to, opts)
	require.NoError(t, err)
	for _, name := range kept(t, opts.KeepDir, "json") {
		b, err := os.ReadFile(name)
		require.NoError(t, err)
		if strings.Contains(string(b), `"tarDiffID":"`+layers[1].Digest.String()) {
			require.NoError(t, os.Remove(name))
		}
	}
	got, err := run(t, "oci:"+l.dir, to, opts)
	require.NoError(t, err)
	require.Equal(t, want.Digest, got.Digest)
	require.True(t, got.Images[0].Layers[0].Resumed)
	require.False(t, got.Images[0].Layers[1].Resumed)
}
