package zstdseek

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/format"
	"github.com/lazyerofs/lazyerofs/fs/format/formattest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testImage is n bytes, half noise and half text, so that frames hold raw,
// compressed and RLE blocks.
func testImage(n int) []byte {
	rnd := rand.NewChaCha8([32]byte{1})
	image := make([]byte, n)
	for i := 0; i+4096 <= n; i += 4096 {
		switch i / 4096 % 3 {
		case 0:
			_, _ = rnd.Read(image[i : i+4096])
		case 1:
			copy(image[i:i+4096], bytes.Repeat([]byte("the same words again "), 200))
		}
	}
	return image
}

func TestLaws(t *testing.T) {
	for name, size := range map[string]int{"one chunk": 4096, "many": 300 * 4096, "unaligned end": 70*4096 + 512} {
		t.Run(name, func(t *testing.T) {
			image := testImage(size)
			blob, desc, err := formattest.BuildZstd(image, 64<<10)
			require.NoError(t, err)
			formattest.Run(t, formattest.Layer{Format: New(), Blob: blob, Desc: desc, Image: image})
			desc.MediaType = chunk.MediaTypeDraftLayerZstd
			formattest.Run(t, formattest.Layer{Format: New(), Blob: blob, Desc: desc, Image: image})
		})
	}
}

func TestMatch(t *testing.T) {
	for _, m := range []string{"", chunk.MediaTypeLayer, chunk.MediaTypeDraftLayer, ocispec.MediaTypeImageLayerZstd} {
		require.False(t, New().Match(ocispec.Descriptor{MediaType: m}), m)
	}
	require.Equal(t, "zstdseek", New().Name())
}

// TestOneRequest: opening costs one ranged read of exactly the index section.
func TestOneRequest(t *testing.T) {
	data, desc, err := formattest.BuildZstd(testImage(1<<20), 64<<10)
	require.NoError(t, err)
	b := formattest.NewBlob(data)
	_, err = New().Open(t.Context(), b, desc)
	require.NoError(t, err)
	section, err := chunk.ParseRange(desc.Annotations[chunk.AnnotationIndexRange], b.Size())
	require.NoError(t, err)
	require.Equal(t, [][]chunk.Extent{{section}}, b.Log())
}

func TestLabelsWinAndHint(t *testing.T) {
	image := testImage(1 << 20)
	data, desc, err := formattest.BuildZstd(image, 64<<10)
	require.NoError(t, err)
	a := desc.Annotations
	a[chunk.LabelIndexRange], a[chunk.AnnotationIndexRange] = a[chunk.AnnotationIndexRange], "0:5"
	a[chunk.LabelIndexDigest], a[chunk.AnnotationIndexDigest] = a[chunk.AnnotationIndexDigest], "nonsense"
	a[chunk.LabelPinned] = "8192:100"
	a[chunk.LabelPrefetch] = "99999999999:5"
	plan, err := New().Open(t.Context(), formattest.NewBlob(data), desc)
	require.NoError(t, err)
	require.Equal(t, chunk.Extent{Len: 8192}, plan.PinnedHint)
	require.Equal(t, chunk.Extent{Len: 1 << 20}, plan.Prefetch)
	a[chunk.LabelPinned] = "-8192"
	plan, err = New().Open(t.Context(), formattest.NewBlob(data), desc)
	require.NoError(t, err)
	require.Zero(t, plan.PinnedHint)
}

// TestNotLazy: what only makes a layer not lazy.
func TestNotLazy(t *testing.T) {
	data, good, err := formattest.BuildZstd(testImage(1<<20), 64<<10)
	require.NoError(t, err)
	for _, tc := range []struct{ name, key, value string }{
		{"no range", chunk.AnnotationIndexRange, ""},
		{"no digest", chunk.AnnotationIndexDigest, ""},
		{"range is words", chunk.AnnotationIndexRange, "from:to"},
		{"range outside", chunk.AnnotationIndexRange, "0:99999999999999"},
		{"digest is words", chunk.AnnotationIndexDigest, "sha256:short"},
		{"unknown digest algorithm", chunk.AnnotationIndexDigest, "md5:d41d8cd98f00b204e9800998ecf8427e"},
		{"other media type", "org.erofs.chunk-index.mediaType", "application/vnd.erofs.chunk-index.v2"},
		{"uncompressed digest is words", chunk.AnnotationUncompressedDigest, "none"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			desc := good
			desc.Annotations = map[string]string{}
			for k, v := range good.Annotations {
				desc.Annotations[k] = v
			}
			desc.Annotations[tc.key] = tc.value
			_, err := New().Open(t.Context(), formattest.NewBlob(data), desc)
			require.ErrorIs(t, err, format.ErrNotLazy)
			require.ErrorContains(t, err, desc.Digest.String())
		})
	}
}

// reindex replaces the index of a layer and its annotations.
func reindex(data []byte, desc ocispec.Descriptor, index []byte) ([]byte, ocispec.Descriptor) {
	section, err := chunk.ParseRange(desc.Annotations[chunk.AnnotationIndexRange], int64(len(data)))
	if err != nil {
		panic(err)
	}
	data = chunk.AppendSkippableFrame(bytes.Clone(data[:section.Off]), index)
	section.Len = int64(len(data)) - section.Off
	desc.Annotations[chunk.AnnotationIndexRange] = chunk.FormatRange(section)
	desc.Annotations[chunk.AnnotationIndexDigest] = digest.FromBytes(index).String()
	desc.Digest = digest.FromBytes(data)
	return data, desc
}

func TestIndexKinds(t *testing.T) {
	zero := chunk.NewIndexBuilder(chunk.CodecZstd, 32).Bytes(0)
	noHash := chunk.NewIndexBuilder(chunk.CodecZstd, 0)
	require.NoError(t, noHash.Add(0, 0, nil))
	raw := chunk.NewIndexBuilder(chunk.CodecNone, 32)
	require.NoError(t, raw.Add(0, 0, make([]byte, 32)))
	v2 := bytes.Clone(zero)
	v2[4] = 2
	for _, tc := range []struct {
		name  string
		index []byte
		lazy  bool // the error says that the layer is not lazy, not that it is corrupt
	}{
		{"no chunks", zero, true},
		{"no digests", noHash.Bytes(4096), true},
		{"version 2", v2, true},
		{"compression contradicts the media type", raw.Bytes(16384), false},
		{"garbage", []byte("garbage"), false},
		{"empty", nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			data, desc, err := formattest.BuildRaw(testImage(16384), 4096)
			require.NoError(t, err)
			desc.MediaType = chunk.MediaTypeLayerZstd
			data, desc = reindex(data, desc, tc.index)
			_, err = New().Open(t.Context(), formattest.NewBlob(data), desc)
			var ce *chunk.CorruptError
			require.Equal(t, tc.lazy, errors.Is(err, format.ErrNotLazy), "%v", err)
			require.Equal(t, !tc.lazy, errors.As(err, &ce), "%v", err)
		})
	}
}

// TestIndexFlips: any changed bit of the index section is refused.
func TestIndexFlips(t *testing.T) {
	data, desc, err := formattest.BuildZstd(testImage(16384), 4096)
	require.NoError(t, err)
	section, err := chunk.ParseRange(desc.Annotations[chunk.AnnotationIndexRange], int64(len(data)))
	require.NoError(t, err)
	for i := section.Off; i < section.End(); i++ {
		bad := bytes.Clone(data)
		bad[i] ^= 1 << (i % 8)
		_, err := New().Open(t.Context(), formattest.NewBlob(bad), desc)
		if i == section.Off && bad[i]&0xF0 == data[i]&0xF0 {
			require.NoError(t, err, "another of the 16 skippable magic numbers means the same")
			continue
		}
		var ce *chunk.CorruptError
		require.ErrorAs(t, err, &ce, "byte %d", i)
	}
}

// lie returns a chunk whose digest is right for stored.
func lie(stored []byte, dataLen int64) chunk.Chunk {
	sum := sha256.Sum256(stored)
	return chunk.Chunk{
		Data: chunk.Extent{Len: dataLen}, Blob: chunk.Extent{Len: int64(len(stored))},
		Codec: chunk.CodecZstd, Sum: sum[:],
	}
}

func encode(t testing.TB, p []byte, opts ...zstd.EOption) []byte {
	t.Helper()
	enc, err := zstd.NewWriter(nil, opts...)
	require.NoError(t, err)
	return enc.EncodeAll(p, nil)
}

// TestLyingFrames: stored bytes with a good digest that are not exactly one
// frame of exactly the promised length.
func TestLyingFrames(t *testing.T) {
	page := testImage(4096)
	frame := encode(t, page)
	pad := chunk.AppendSkippableFrame(nil, []byte("padding"))
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	flipped := bytes.Clone(frame)
	flipped[len(flipped)-1] ^= 1 // content checksum
	for _, tc := range []struct {
		name   string
		stored []byte
		ok     bool
	}{
		{"a frame", frame, true},
		{"a frame and padding", join(frame, pad), true},
		{"a frame and twice padding", join(frame, pad, pad), true},
		{"a frame of a byte less", encode(t, page[1:]), false},
		{"a frame of a byte more", encode(t, append(bytes.Clone(page), 1)), false},
		{"a bomb", encode(t, make([]byte, 64<<20)), false},
		{"a bomb that hides its size", streamed(t, make([]byte, 8<<20)), false},
		{"two frames", join(encode(t, page[:2048]), encode(t, page[2048:])), false},
		{"a frame and an empty frame", join(frame, encode(t, nil, zstd.WithZeroFrames(true))), false},
		{"padding first", join(pad, frame), false},
		{"only padding", pad, false},
		{"garbage after", join(frame, []byte{0}), false},
		{"padding cut off", join(frame, pad[:len(pad)-1]), false},
		{"frame cut off", frame[:len(frame)-1], false},
		{"wrong checksum", flipped, false},
		{"garbage", []byte("garbage"), false},
		{"nothing", nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := decode("sha256:x", nil, tc.stored, lie(tc.stored, 4096))
			if tc.ok {
				require.NoError(t, err)
				require.Equal(t, page, got)
				return
			}
			var ce *chunk.CorruptError
			require.ErrorAs(t, err, &ce)
			require.Nil(t, got)
		})
	}
}

// streamed encodes p without a content size in the frame header.
func streamed(t testing.TB, p []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	enc, err := zstd.NewWriter(&buf, zstd.WithEncoderConcurrency(1))
	require.NoError(t, err)
	_, err = enc.Write(p)
	require.NoError(t, err)
	require.NoError(t, enc.Close())
	return buf.Bytes()
}

// FuzzDecode holds that no stored bytes, whose digest is made to fit, make the
// decoder panic, return data of another length or disagree about the frame's
// end with the library.
func FuzzDecode(f *testing.F) {
	page := testImage(4096)
	f.Add(encode(f, page), uint16(4096))
	f.Add(streamed(f, page), uint16(4096))
	f.Add(chunk.AppendSkippableFrame(encode(f, page), []byte("pad")), uint16(4096))
	f.Fuzz(func(t *testing.T, stored []byte, n uint16) {
		got, err := decode("sha256:x", nil, stored, lie(stored, int64(n)))
		if err != nil {
			var ce *chunk.CorruptError
			require.ErrorAs(t, err, &ce)
			require.Nil(t, got)
			return
		}
		require.Len(t, got, int(n))
		d, err := decoder()
		require.NoError(t, err)
		all, err := d.DecodeAll(stored, make([]byte, 0, 1<<17))
		require.NoError(t, err)
		require.True(t, bytes.Equal(all, got))
	})
}

func BenchmarkDecode(b *testing.B) {
	image := testImage(256 << 10)
	stored := encode(b, image)
	c := lie(stored, int64(len(image)))
	b.SetBytes(int64(len(image)))
	b.ReportAllocs()
	dst := make([]byte, 0, len(image)+slack)
	for b.Loop() {
		if _, err := decode("sha256:x", dst, stored, c); err != nil {
			b.Fatal(err)
		}
	}
}
