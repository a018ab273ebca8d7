package differ

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"io"
	"os/exec"
	"strconv"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// layerTar has every kind of file data: nothing, less than a block, less than a
// chunk, whole chunks, a tail, holes in all places.
func layerTar(t testing.TB) []byte {
	hole := string(make([]byte, 1<<20))
	ents := []ent{
		dir("big"), dir("small"), symlink("link", "big/even"),
		file("big/even", text(1, 2*DefaultChunkSize)), file("big/odd", text(2, DefaultChunkSize+4097)),
		file("big/random", random(3, 3*DefaultChunkSize-1)), file("big/zero", hole),
		file("big/head", hole+text(4, 70000)), file("big/tail", text(5, 70000)+hole),
		file("big/middle", text(6, 1<<16)+hole+text(7, 1<<16)+hole[:1<<16]+"x"),
		file("small/empty", ""), hardlink("small/again", "big/random"),
		file("gone", random(8, DefaultChunkSize)), file("gone", "no longer"),
	}
	for i := range 200 {
		ents = append(ents, file("small/"+strconv.Itoa(i), text(uint64(i), i*97)))
	}
	return mkTar(t, ents...)
}

func index(t *testing.T, res Result, blob []byte) *chunk.Index {
	t.Helper()
	e, err := chunk.ParseRange(res.Descriptor.Annotations[chunk.AnnotationIndexRange], int64(len(blob)))
	require.NoError(t, err)
	require.Equal(t, int64(len(blob)), e.End(), "the index ends the blob")
	require.Equal(t, res.IndexSize, e.Len)
	section := blob[e.Off:]
	if res.Descriptor.MediaType == chunk.MediaTypeLayerZstd {
		section, err = chunk.SkippablePayload(section)
		require.NoError(t, err)
	}
	require.Equal(t, res.Descriptor.Annotations[chunk.AnnotationIndexDigest], digest.FromBytes(section).String())
	x, err := chunk.ParseIndex(section, e.Off)
	require.NoError(t, err)
	return x
}

// TestBlob checks everything that a reader of the blob relies on.
func TestBlob(t *testing.T) {
	src := layerTar(t)
	for _, form := range []Form{Zstd, Raw} {
		t.Run(form.String(), func(t *testing.T) {
			res, blob := convertBytes(t, src, Config{Form: form})
			img := imageOf(t, blob, res)
			require.Equal(t, digest.FromBytes(blob), res.Descriptor.Digest)
			require.EqualValues(t, len(blob), res.Descriptor.Size)
			require.EqualValues(t, len(img), res.ImageSize)
			require.Equal(t, digest.FromBytes(src), res.TarDiffID)
			require.EqualValues(t, len(src), res.TarSize)
			notes := res.Descriptor.Annotations
			if form == Zstd {
				require.Equal(t, digest.FromBytes(img), res.DiffID)
				require.Equal(t, res.DiffID.String(), notes[chunk.AnnotationUncompressedDigest])
				require.Equal(t, res.DiffID.String(), notes[chunk.LabelUncompressedDigest])
			} else {
				require.Equal(t, res.Descriptor.Digest, res.DiffID)
			}
			require.Equal(t, strconv.Itoa(len(blob)), notes[chunk.LabelBlobSize])
			require.Equal(t, res.Descriptor.MediaType, notes[chunk.LabelMediaType])
			require.Equal(t, notes[chunk.AnnotationIndexRange], notes[chunk.LabelIndexRange])
			require.Equal(t, notes[chunk.AnnotationIndexDigest], notes[chunk.LabelIndexDigest])
			require.NotContains(t, notes, chunk.LabelPrefetch)
			checkChunks(t, res, blob, img)
		})
	}
}

// checkChunks decodes each chunk on its own and holds it against the image.
func checkChunks(t *testing.T, res Result, blob, img []byte) {
	x := index(t, res, blob)
	require.Equal(t, res.Chunks, x.Len())
	imageEnd, blobEnd, err := chunk.ParseEnds(res.Descriptor.Annotations[chunk.LabelPinned])
	require.NoError(t, err)
	require.Equal(t, res.MetaSize, imageEnd)
	dec, err := zstd.NewReader(nil)
	require.NoError(t, err)
	defer dec.Close()
	for i := range x.Len() {
		c := x.At(i)
		stored := blob[c.Blob.Off:c.Blob.End()]
		sum := sha256.Sum256(stored)
		require.Equal(t, sum[:], c.Sum)
		if c.Codec == chunk.CodecZstd {
			var h zstd.Header
			require.NoError(t, h.Decode(stored))
			require.True(t, h.HasFCS, "frame %d says its size", i)
			stored, err = dec.DecodeAll(stored, nil)
			require.NoError(t, err)
		}
		require.True(t, bytes.Equal(img[c.Data.Off:c.Data.End()], stored), "chunk %d", i)
		require.Zero(t, c.Data.Len%blockSize)
		require.Equal(t, c.Data.Off < imageEnd, c.Data.End() <= imageEnd, "chunk %d holds metadata or data", i)
		require.Equal(t, c.Data.Off < imageEnd, c.Blob.End() <= blobEnd, "chunk %d is pinned or not", i)
		require.LessOrEqual(t, c.Data.Len, int64(DefaultChunkSize))
	}
}

// TestSameFileSameChunks: what a registry or a node could share between images.
func TestSameFileSameChunks(t *testing.T) {
	lib := file("usr/lib/libbig.so", text(9, 5*DefaultChunkSize+12345))
	resA, a := convertBytes(t, mkTar(t, file("a", "1"), lib), Config{})
	resB, b := convertBytes(t, mkTar(t, file("other/x", text(1, 100000)), lib, file("z", random(4, 9000))), Config{})
	sums := make(map[string]bool)
	xa, xb := index(t, resA, a), index(t, resB, b)
	for i := range xa.Len() {
		sums[string(xa.At(i).Sum)] = true
	}
	shared := 0
	for i := range xb.Len() {
		if sums[string(xb.At(i).Sum)] {
			shared++
		}
	}
	require.Equal(t, 6, shared)
}

func TestDeterministic(t *testing.T) {
	src := layerTar(t)
	for _, form := range []Form{Zstd, Raw} {
		for _, level := range []int{1, 3, 19} {
			_, one := convertBytes(t, src, Config{Form: form, Level: level, Workers: 1})
			for _, workers := range []int{2, 4, 9} {
				_, many := convertBytes(t, src, Config{Form: form, Level: level, Workers: workers})
				require.True(t, bytes.Equal(one, many), "%v, level %d, %d workers", form, level, workers)
			}
		}
	}
}

func TestFirst(t *testing.T) {
	src := layerTar(t)
	first := []string{"small/30", "/link", "small/7", "small", "nowhere", "../x", "small/30", "small/empty", "big/zero"}
	res, blob := convertBytes(t, src, Config{First: first})
	img := imageOf(t, blob, res)
	checkChunks(t, res, blob, img)
	imageEnd, blobEnd, err := chunk.ParseEnds(res.Descriptor.Annotations[chunk.LabelPrefetch])
	require.NoError(t, err)
	x := index(t, res, blob)
	c := x.At(x.Find(imageEnd - 1))
	require.Equal(t, imageEnd, c.Data.End(), "prefetch ends with a chunk")
	require.Equal(t, blobEnd, c.Blob.End())
	require.EqualValues(t, 4096+4096+2*DefaultChunkSize, imageEnd-res.MetaSize)
	require.Equal(t, text(30, 30*97), string(img[res.MetaSize:][:30*97]), "the first file comes first")
	_, plainBlob := convertBytes(t, src, Config{})
	require.NotEqual(t, digest.FromBytes(plainBlob), res.Descriptor.Digest)

	_, blob = convertBytes(t, src, Config{First: []string{"nowhere"}})
	require.Equal(t, plainBlob, blob)
}

func TestImplied(t *testing.T) {
	res, blob := convertBytes(t, mkTar(t, file("home/user/f", ""), file("etc/f", "")), Config{
		Implied: func(p string) (erofs.Attr, bool, error) {
			return erofs.Attr{Mode: unix.S_IFDIR | 0o700, UID: 7, GID: 8}, p == "home/user", nil
		},
	})
	require.Equal(t, []string{rootLine, "etc d755 0:0", "etc/f -644 0:0 size=0 nlink=1", "home d755 0:0",
		"home/user d700 7:8", "home/user/f -644 0:0 size=0 nlink=1"}, list(t, mountImage(t, imageOf(t, blob, res))))
}

func TestImpliedFails(t *testing.T) {
	_, err := Convert(t.Context(), bytes.NewReader(mkTar(t, file("a/f", ""))), io.Discard, Config{
		Implied: func(string) (erofs.Attr, bool, error) { return erofs.Attr{}, false, io.ErrUnexpectedEOF },
	})
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.ErrorContains(t, err, `looking up directory "a" in the layers below`)
}

// TestGolden fails when anything changes the bytes of a layer: images would be
// built twice, and pushed and cached twice. Change the digests only on purpose.
func TestGolden(t *testing.T) {
	src := mkTar(t, dir("etc"), file("etc/passwd", "root:x:0:0::/:/bin/sh\n"), file("big", text(1, 600000)),
		symlink("bin", "usr/bin"), hardlink("etc/passwd-", "etc/passwd"), file(".wh.old", ""))
	for _, tc := range []struct {
		cfg   Config
		image digest.Digest
		blob  map[string]digest.Digest // by ZstdEncoder
	}{
		{Config{}, "sha256:ef7eaf828c4fc257b1e16062e8d042c5d66dba95125b4a9a07ffb74bde315a09", map[string]digest.Digest{
			"libzstd 1.5.7":      "sha256:26c06009b7a0caec92ef7512b5b1e045c8694cb630a1ef5a3e98b3eaf5d7bd30",
			"klauspost/compress": "sha256:9636e4c0059947a0a8fd9bb82e4f984753699ff1343c3cc725e523450235238a",
		}},
		{Config{Level: 9, ChunkSize: 64 << 10, First: []string{"etc/passwd"}}, "sha256:4a964c23cf05cb516025d7a8c1791c3a1e4bb7c61dd2d1ef90e5a32703a27add", map[string]digest.Digest{
			"libzstd 1.5.7":      "sha256:4c7175c66e786cb6411efbd5f1c9dc900d8ec4760f153dbf47f95279920557c6",
			"klauspost/compress": "sha256:24a605550aa0fd248032eec8287b154862ce941d6835fbf4958d2aca7ef9153e",
		}},
	} {
		res, _ := convertBytes(t, src, tc.cfg)
		require.Equal(t, tc.image, res.DiffID, "%+v", tc.cfg)
		require.Equal(t, tc.blob[ZstdEncoder], res.Descriptor.Digest, "%+v", tc.cfg)
	}
	res, _ := convertBytes(t, src, Config{Form: Raw})
	require.EqualValues(t, "sha256:fe44bc88da5e47464c3323248265ec6b73b8481ceb453cd78f28889aba0ee00c", res.Descriptor.Digest)
}

func TestCompressedInput(t *testing.T) {
	src := layerTar(t)
	want, _ := convertBytes(t, src, Config{Form: Raw})
	var gz, zs bytes.Buffer
	w := gzip.NewWriter(&gz)
	_, err := w.Write(src)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	enc, err := zstd.NewWriter(&zs)
	require.NoError(t, err)
	_, err = enc.Write(src)
	require.NoError(t, err)
	require.NoError(t, enc.Close())
	skippable := chunk.AppendSkippableFrame(nil, []byte("first"))
	for name, b := range map[string][]byte{"gzip": gz.Bytes(), "zstd": zs.Bytes(), "skippable": append(skippable, zs.Bytes()...)} {
		t.Run(name, func(t *testing.T) {
			got, _ := convertBytes(t, b, Config{Form: Raw})
			require.Equal(t, want, got)
			for _, n := range []int{len(b) - 1, len(b) / 2, len(b) - 9} {
				_, err := Convert(t.Context(), bytes.NewReader(b[:n]), io.Discard, Config{SpoolDir: t.TempDir()})
				require.ErrorIs(t, err, ErrTruncated)
			}
		})
	}
}

func TestTruncated(t *testing.T) {
	src := mkTar(t, file("a", random(1, 300000)), file("b", random(2, 5000)))
	for _, n := range []int{100, 700, 4096, 300000, 300512 + 512 + 700} {
		_, err := Convert(t.Context(), bytes.NewReader(src[:n]), io.Discard, Config{SpoolDir: t.TempDir()})
		require.ErrorIs(t, err, ErrTruncated, "%d bytes", n)
	}
	_, err := Convert(t.Context(), bytes.NewReader([]byte(text(1, 9000))), io.Discard, Config{SpoolDir: t.TempDir()})
	require.ErrorContains(t, err, "not a tar archive")
	require.ErrorIs(t, err, tar.ErrHeader)
}

// TestZstdCommand: the plain decoder that everyone has yields the image.
func TestZstdCommand(t *testing.T) {
	res, blob := convertBytes(t, layerTar(t), Config{})
	cmd := exec.CommandContext(t.Context(), "zstd", "-dc")
	cmd.Stdin = bytes.NewReader(blob)
	img, err := cmd.Output()
	require.NoError(t, err)
	require.Equal(t, res.DiffID, digest.FromBytes(img))
}

func TestConfig(t *testing.T) {
	for want, cfg := range map[string]Config{
		"layer form":  {Form: 9},
		"chunk size":  {ChunkSize: 5000},
		"between 409": {ChunkSize: 128 << 20},
		"zstd level":  {Level: 23},
		"workers":     {Workers: -1},
		"spool":       {SpoolDir: "/nowhere/at/all"},
	} {
		_, err := Convert(t.Context(), bytes.NewReader(mkTar(t)), io.Discard, cfg)
		require.ErrorContains(t, err, want)
	}
}
