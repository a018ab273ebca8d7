package chunk

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseRange(t *testing.T) {
	for s, want := range map[string]Extent{
		"0:100":  {0, 100},
		"0":      {0, 100},
		"99":     {99, 1},
		"10:20":  {10, 10},
		"99:100": {99, 1},
	} {
		got, err := ParseRange(s, 100)
		require.NoError(t, err, s)
		require.Equal(t, want, got, s)
	}
	for _, s := range []string{
		"", ":", "1:", ":5", "-1", "-1:5", "+1:5", "5:5", "6:5", "100", "0:101", "0x1:5", "1_0:20", " 1:5", "1:5 ", "1:5:6",
		"9223372036854775807", "9223372036854775808", "18446744073709551616:1", "1-5", "1.0:5",
	} {
		_, err := ParseRange(s, 100)
		require.Error(t, err, "%q", s)
	}
	require.Equal(t, "10:30", FormatRange(Extent{10, 20}))
}

func TestParseEnds(t *testing.T) {
	image, blob, err := ParseEnds(FormatEnds(8192, 77))
	require.NoError(t, err)
	require.EqualValues(t, 8192, image)
	require.EqualValues(t, 77, blob)
	for _, s := range []string{"", "1", "1:", ":1", "a:1", "1:b", "-1:1", "1:-1", "1:2:3"} {
		_, _, err := ParseEnds(s)
		require.Error(t, err, "%q", s)
	}
}

func TestExtentEnd(t *testing.T) {
	require.EqualValues(t, 30, Extent{10, 20}.End())
}

func TestNames(t *testing.T) {
	require.Equal(t, "none", CodecNone.String())
	require.Equal(t, "zstd", CodecZstd.String())
	require.Equal(t, "unknown", Codec(9).String())
	require.EqualError(t, &CorruptError{Origin: OriginDisk, What: "chunk 3", Reason: "it rotted"},
		"chunk 3 from the disk is corrupt: it rotted")
	require.EqualError(t, &CorruptError{What: "chunk 3", Reason: "it lies"}, "chunk 3 from the registry is corrupt: it lies")
}

// FuzzLabels holds that what parses lies inside the blob and survives a round
// trip through its formatter.
func FuzzLabels(f *testing.F) {
	f.Add("10:20", int64(100))
	f.Add("10", int64(math.MaxInt64))
	f.Add("-1:18446744073709551615", int64(0))
	f.Fuzz(func(t *testing.T, s string, size int64) {
		if e, err := ParseRange(s, size); err == nil {
			if e.Off < 0 || e.Len <= 0 || e.End() > size || e.End() < e.Off {
				t.Fatalf("%q in %d gives %+v", s, size, e)
			}
			again, err := ParseRange(FormatRange(e), size)
			require.NoError(t, err)
			require.Equal(t, e, again)
		}
		if image, blob, err := ParseEnds(s); err == nil && (image < 0 || blob < 0) {
			t.Fatalf("%q gives %d, %d", s, image, blob)
		}
	})
}
