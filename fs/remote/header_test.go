package remote

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestParseContentRange(t *testing.T) {
	for s, want := range map[string]contentRange{
		"bytes 0-0/1":       {0, 1, 1},
		"bytes 5-9/100":     {5, 10, 100},
		"Bytes 5-9/*":       {5, 10, -1},
		"bytes 0-9999/1000": {}, "bytes 9-5/100": {}, "bytes */100": {}, "bytes 1-2": {}, "": {}, "bytes": {}, "bytes -1-5/9": {},
		"bytes 1-5/+9": {}, "bytes 0-99999999999999999999/99999999999999999999": {}, "items 0-1/2": {}, "bytes 0- 1/2": {},
		"bytes 0-9223372036854775807/*": {}, "bytes 0-1125899906842624/*": {0, 1<<50 + 1, -1},
	} {
		got, err := parseContentRange(s)
		require.Equal(t, want == contentRange{}, err != nil, s)
		require.Equal(t, want, got, s)
	}
}

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-0/1", "bytes 5-9/*", "bytes */9", "bytes 1-0/2", "bytes 0-1125899906842624/1125899906842625", "x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		cr, err := parseContentRange(s)
		if err != nil {
			require.Equal(t, contentRange{}, cr)
			return
		}
		require.GreaterOrEqual(t, cr.off, int64(0))
		require.Greater(t, cr.end, cr.off)
		require.LessOrEqual(t, cr.end, maxSize+1)
		if cr.total != -1 {
			require.GreaterOrEqual(t, cr.total, cr.end)
		}
	})
}

func TestRetryAfterHeader(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for v, want := range map[string]time.Duration{
		"": 0, "0": 0, "7": 7 * time.Second, "-1": 0, "1.5": 0, "soon": 0, "999999999999": time.Hour, "99999999999999999999": 0,
		now.Add(time.Minute).Format(http.TimeFormat):    time.Minute,
		now.Add(-time.Minute).Format(http.TimeFormat):   0,
		now.Add(48 * time.Hour).Format(http.TimeFormat): time.Hour,
	} {
		require.Equal(t, want, retryAfter(http.Header{"Retry-After": {v}}, now), v)
	}
}

func FuzzLayerList(f *testing.F) {
	d := "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	for _, s := range []string{"", d, d + "," + d, ",,,", "sha256:xyz," + d, "sha512:00", d + ",md5:d41d8cd98f00b204e9800998ecf8427e"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l := layerList(target(d), s)
		require.NotEmpty(t, l)
		require.LessOrEqual(t, len(l), maxNeighbours)
		for _, x := range l {
			require.NoError(t, checkDigest(x.Digest))
			require.Empty(t, x.URLs)
		}
	})
}
