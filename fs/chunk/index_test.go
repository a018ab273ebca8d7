package chunk

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// build makes an index from parallel offsets; digests are of the chunk number.
func build(t testing.TB, codec Codec, hashSize int, size int64, offs ...[2]int64) []byte {
	t.Helper()
	b := NewIndexBuilder(codec, hashSize)
	for i, o := range offs {
		require.NoError(t, b.Add(o[0], o[1], testSum(i, hashSize)))
	}
	return b.Bytes(size)
}

func testSum(i, size int) []byte {
	one := sha256.Sum256(binary.LittleEndian.AppendUint32(nil, uint32(i)))
	return append(one[:], one[:]...)[:size]
}

func TestIndexGolden(t *testing.T) {
	for _, tc := range []struct {
		name    string
		index   []byte
		blobEnd int64
		sum     string // SHA-256 of the index
	}{
		{"zstd-empty", build(t, CodecZstd, 32, 0), 0,
			"6bfe68eea321877848a3fa371edb6904f736fdc40749f78e3c3abfa851efc37e"},
		{"zstd-three", build(t, CodecZstd, 32, 600000, [2]int64{0, 0}, [2]int64{1000, 262144}, [2]int64{90001, 524288}), 95000,
			"73c4dea7c510e4528c190994d4d704f48b58ab81b39fdfd00d7c3c3766fa51b2"},
		{"raw-sha512", build(t, CodecNone, 64, 12288, [2]int64{0, 0}, [2]int64{8192, 8192}), 12288,
			"165ebc08cfecedd0721f27c3dc264e3fc2a562df3233b054308e68e5feb026fd"},
		{"zstd-no-hash", build(t, CodecZstd, 0, 4096, [2]int64{16, 0}), 80,
			"73ab28b733e863668c48a20d8b6c1719b9a786799701a0016cb9328f40f24cb1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := filepath.Join("testdata", tc.name+".hex")
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			want, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
			require.NoError(t, err)
			require.Equal(t, want, tc.index, "the encoder no longer writes %s", file)
			sum := sha256.Sum256(want)
			require.Equal(t, tc.sum, hex.EncodeToString(sum[:]))
			x, err := ParseIndex(want, tc.blobEnd)
			require.NoError(t, err)
			require.Equal(t, want, x.Bytes())
		})
	}
}

func TestIndexFields(t *testing.T) {
	b := build(t, CodecZstd, 32, 600000, [2]int64{0, 0}, [2]int64{1000, 262144}, [2]int64{90001, 524288})
	x, err := ParseIndex(b, 95000)
	require.NoError(t, err)
	require.EqualValues(t, 600000, x.Size())
	require.Equal(t, 3, x.Len())
	require.Equal(t, CodecZstd, x.Codec())
	require.Equal(t, 32, x.HashSize())
	require.Equal(t, Chunk{
		Data: Extent{262144, 262144}, Blob: Extent{1000, 89001}, Codec: CodecZstd, Sum: testSum(1, 32),
	}, x.At(1))
	require.Equal(t, Chunk{
		Data: Extent{524288, 75712}, Blob: Extent{90001, 4999}, Codec: CodecZstd, Sum: testSum(2, 32),
	}, x.At(2))
	for off, want := range map[int64]int{
		-1: -1, 0: 0, 262143: 0, 262144: 1, 524287: 1, 524288: 2, 599999: 2, 600000: -1,
		math.MinInt64: -1, math.MaxInt64: -1,
	} {
		require.Equal(t, want, x.Find(off), "offset %d", off)
	}
}

func TestIndexEmpty(t *testing.T) {
	x, err := ParseIndex(build(t, CodecNone, 32, 0), 0)
	require.NoError(t, err)
	require.Zero(t, x.Len())
	require.Equal(t, -1, x.Find(0))
}

// TestIndexRules breaks one rule at a time in an otherwise valid index.
func TestIndexRules(t *testing.T) {
	const blobEnd = 16384
	le := binary.LittleEndian
	entry := func(b []byte, i int) []byte { return b[32+i*48:] }
	for _, tc := range []struct {
		name   string
		mutate func(b []byte) []byte
		reason string // "" means ErrUnknownIndex
	}{
		{"empty", func([]byte) []byte { return nil }, "shorter"},
		{"short header", func(b []byte) []byte { return b[:31] }, "shorter"},
		{"magic", func(b []byte) []byte { b[0]++; return b }, "magic"},
		{"version 0", func(b []byte) []byte { b[4] = 0; return b }, ""},
		{"version 2", func(b []byte) []byte { b[4] = 2; return b }, ""},
		{"flag 0", func(b []byte) []byte { b[6] = 1; return b }, ""},
		{"flag 15", func(b []byte) []byte { b[7] = 0x80; return b }, ""},
		{"compression", func(b []byte) []byte { b[5] = 2; return b }, "compression"},
		{"first reserved", func(b []byte) []byte { b[22] = 1; return b }, "reserved"},
		{"last reserved", func(b []byte) []byte { b[31] = 1; return b }, "reserved"},
		{"hash family", func(b []byte) []byte { b[20] = 2; return b }, "hash family"},
		{"hash size", func(b []byte) []byte { b[21] = 48; return b }, "hash family"},
		{"no family but a size", func(b []byte) []byte { b[20] = 0; return b }, "hash family"},
		{"one byte missing", func(b []byte) []byte { return b[:len(b)-1] }, "long"},
		{"one byte more", func(b []byte) []byte { return append(b, 0) }, "long"},
		{"count too small", func(b []byte) []byte { le.PutUint32(b[16:], 2); return b }, "long"},
		{"count is 2^32-1", func(b []byte) []byte { le.PutUint32(b[16:], math.MaxUint32); return b }, "long"},
		{"no chunks but a size", func(b []byte) []byte { le.PutUint32(b[16:], 0); return b[:32] }, "do not fit"},
		{"size 2^64-1", func(b []byte) []byte { le.PutUint64(b[8:], math.MaxUint64); return b }, "do not fit"},
		{"size below last start", func(b []byte) []byte { le.PutUint64(b[8:], 12288); return b }, "ends at"},
		{"first image offset", func(b []byte) []byte { le.PutUint64(entry(b, 0)[8:], 4096); return b }, "not at 0"},
		{"unaligned", func(b []byte) []byte { le.PutUint64(entry(b, 1)[8:], 8191); return b }, "multiple"},
		{"image offsets equal", func(b []byte) []byte { le.PutUint64(entry(b, 2)[8:], 8192); return b }, "ends at"},
		{"image offset 2^63", func(b []byte) []byte { le.PutUint64(entry(b, 1)[8:], 1<<63); return b }, "more than"},
		{"blob offsets equal", func(b []byte) []byte { le.PutUint64(entry(b, 1), 0); return b }, "empty"},
		{"blob offsets descend", func(b []byte) []byte { le.PutUint64(entry(b, 2), 8191); return b }, "empty"},
		{"blob offset past end", func(b []byte) []byte { le.PutUint64(entry(b, 2), blobEnd); return b }, "outside"},
		{"blob offset 2^64-1", func(b []byte) []byte { le.PutUint64(entry(b, 2), math.MaxUint64); return b }, "outside"},
		{"raw length differs", func(b []byte) []byte { b[5] = 0; le.PutUint64(entry(b, 1), 8191); return b }, "raw"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := build(t, CodecZstd, 32, blobEnd, [2]int64{0, 0}, [2]int64{8192, 8192}, [2]int64{12288, 12288})
			x, err := ParseIndex(tc.mutate(b), blobEnd)
			require.Nil(t, x)
			if tc.reason == "" {
				require.ErrorIs(t, err, ErrUnknownIndex)
				return
			}
			var ce *CorruptError
			require.ErrorAs(t, err, &ce)
			require.Equal(t, OriginRegistry, ce.Origin)
			require.Contains(t, ce.Reason, tc.reason)
		})
	}
}

func TestIndexLengthLimits(t *testing.T) {
	long := build(t, CodecZstd, 32, MaxChunkLen+BlockSize, [2]int64{0, 0}, [2]int64{1, MaxChunkLen})
	_, err := ParseIndex(long, 2)
	require.NoError(t, err, "a chunk of exactly the limit")
	_, err = ParseIndex(long, 1+MaxStoredLen)
	require.NoError(t, err, "a stored chunk of exactly the limit")
	_, err = ParseIndex(long, 2+MaxStoredLen)
	require.ErrorContains(t, err, "stored bytes are more than")
	_, err = ParseIndex(long, -1)
	require.ErrorContains(t, err, "begins at")
	b := NewIndexBuilder(CodecZstd, 0)
	require.NoError(t, b.Add(0, 0, nil))
	require.NoError(t, b.Add(1, BlockSize, nil))
	_, err = ParseIndex(b.Bytes(BlockSize+MaxChunkLen+1), 2)
	require.ErrorContains(t, err, "are more than")
}

func TestBuilderRefuses(t *testing.T) {
	sum := testSum(0, 32)
	for _, tc := range []struct {
		name      string
		codec     Codec
		hash      int
		blob, dat int64
		sum       []byte
	}{
		{"codec", 7, 32, 100, 8192, sum},
		{"hash size", CodecZstd, 20, 100, 8192, sum[:20]},
		{"digest length", CodecZstd, 32, 100, 8192, sum[:31]},
		{"negative blob offset", CodecZstd, 32, -1, 8192, sum},
		{"negative image offset", CodecZstd, 32, 100, -4096, sum},
		{"unaligned", CodecZstd, 32, 100, 8193, sum},
		{"blob does not ascend", CodecZstd, 32, 0, 8192, sum},
		{"image does not ascend", CodecZstd, 32, 100, 0, sum},
		{"too long", CodecZstd, 32, 100, MaxChunkLen + 4096, sum},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := NewIndexBuilder(tc.codec, tc.hash)
			if tc.codec == CodecZstd && tc.hash == 32 {
				require.NoError(t, b.Add(0, 0, sum))
			}
			n := b.Len()
			require.Error(t, b.Add(tc.blob, tc.dat, tc.sum))
			require.Equal(t, n, b.Len())
		})
	}
	require.ErrorContains(t, NewIndexBuilder(CodecZstd, 32).Add(0, 4096, sum), "not at 0")
}

// TestIndexRoundTrip makes random indexes and compares every chunk and the
// lookup of its first and last byte with what went in.
func TestIndexRoundTrip(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for round := range 300 {
		codec := Codec(rnd.IntN(2))
		hashSize := []int{0, 32, 64}[rnd.IntN(3)]
		b := NewIndexBuilder(codec, hashSize)
		var want []Chunk
		var data, blob int64
		for i := range rnd.IntN(40) {
			c := Chunk{Data: Extent{data, int64(1+rnd.IntN(100)) * BlockSize}, Codec: codec}
			c.Blob = Extent{blob, 1 + rnd.Int64N(c.Data.Len)}
			if codec == CodecNone {
				c.Blob.Len = c.Data.Len
			}
			if hashSize > 0 {
				c.Sum = testSum(i, hashSize)
			}
			require.NoError(t, b.Add(c.Blob.Off, c.Data.Off, c.Sum))
			want = append(want, c)
			data, blob = c.Data.End(), c.Blob.End()
		}
		x, err := ParseIndex(b.Bytes(data), blob)
		require.NoError(t, err, "round %d", round)
		require.Equal(t, len(want), x.Len())
		for i, c := range want {
			require.Equal(t, c, x.At(i))
			require.Equal(t, i, x.Find(c.Data.Off))
			require.Equal(t, i, x.Find(c.Data.End()-1))
		}
		require.Equal(t, -1, x.Find(data))
	}
}

func TestLookupDoesNotAllocate(t *testing.T) {
	b := NewIndexBuilder(CodecZstd, 32)
	for i := range int64(1000) {
		require.NoError(t, b.Add(i, i*BlockSize, testSum(int(i), 32)))
	}
	x, err := ParseIndex(b.Bytes(1000*BlockSize), 1000)
	require.NoError(t, err)
	var m Map = x
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if c := m.At(m.Find(777 * BlockSize)); c.Blob.Off != 777 {
			panic("wrong chunk")
		}
	}))
}

// FuzzParseIndex holds that whatever parses is a valid Map and that nothing but
// the two documented errors comes back.
func FuzzParseIndex(f *testing.F) {
	f.Add(build(f, CodecZstd, 32, 600000, [2]int64{0, 0}, [2]int64{1000, 262144}), int64(95000))
	f.Add(build(f, CodecNone, 64, 12288, [2]int64{0, 0}, [2]int64{8192, 8192}), int64(12288))
	f.Add(build(f, CodecZstd, 0, 0), int64(0))
	f.Fuzz(func(t *testing.T, b []byte, blobEnd int64) {
		saved := bytes.Clone(b)
		x, err := ParseIndex(b, blobEnd)
		require.Equal(t, saved, b)
		if err != nil {
			var ce *CorruptError
			if !errors.As(err, &ce) && !errors.Is(err, ErrUnknownIndex) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		var data, blob int64
		for i := range x.Len() {
			c := x.At(i)
			if c.Data.Off != data || c.Data.Len <= 0 || c.Data.Len > MaxChunkLen || c.Data.Off%BlockSize != 0 {
				t.Fatalf("chunk %d: data %+v after %d", i, c.Data, data)
			}
			if i > 0 && c.Blob.Off != blob || c.Blob.Off < 0 || c.Blob.Len <= 0 || c.Blob.Len > MaxStoredLen {
				t.Fatalf("chunk %d: blob %+v after %d", i, c.Blob, blob)
			}
			if x.Find(c.Data.Off) != i || x.Find(c.Data.End()-1) != i {
				t.Fatalf("chunk %d is not found", i)
			}
			data, blob = c.Data.End(), c.Blob.End()
		}
		if data != x.Size() || x.Len() > 0 && blob != blobEnd {
			t.Fatalf("chunks end at %d of %d, stored bytes at %d of %d", data, x.Size(), blob, blobEnd)
		}
	})
}

func BenchmarkFind(b *testing.B) {
	ib := NewIndexBuilder(CodecZstd, 32)
	const n = 1 << 16
	for i := range int64(n) {
		require.NoError(b, ib.Add(i, i*64*BlockSize, testSum(int(i), 32)))
	}
	x, err := ParseIndex(ib.Bytes(n*64*BlockSize), n)
	require.NoError(b, err)
	b.ReportAllocs()
	off := int64(0)
	for b.Loop() {
		off = (off + 99991*BlockSize) % x.Size()
		if x.Find(off) < 0 {
			b.Fatal(off)
		}
	}
}
