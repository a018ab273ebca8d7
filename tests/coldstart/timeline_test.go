package coldstart

import (
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

func TestTimelineDrawsEachRequestOnceAndInItsRow(t *testing.T) {
	start := time.Unix(1000, 0)
	blob := digest.FromString("layer")
	at := func(from, to time.Duration, path string, bytes int64) testenv.Request {
		return testenv.Request{Start: start.Add(from), End: start.Add(to), Path: path, Bytes: bytes}
	}
	r := Result{Start: start, Pull: 2 * time.Second, Run: 4 * time.Second, Log: []testenv.Request{
		at(0, time.Millisecond, "/v2/demo/manifests/lazy", 1000),
		at(3*time.Second, 3*time.Second, "/v2/demo/blobs/"+blob.String(), 2_000_000),
		at(6*time.Second, 7*time.Second, "/v2/demo/blobs/"+blob.String(), 100_000), // ended after the result: the last column
		at(time.Second, time.Second, "/v2/demo/blobs/"+blob.String(), 0),           // sent nothing
	}}
	lines := strings.Split(strings.TrimSpace(r.Timeline([]Row{{Label: "manifest"}, {Label: "layer", Blob: blob, Size: 4_000_000}})), "\n")
	require.Len(t, lines, 3)
	cells := func(line string) string { return strings.Split(line, "|")[1] }
	require.Equal(t, ".                   :"+strings.Repeat(" ", columns-21), cells(lines[1]))
	require.Equal(t, strings.Repeat(" ", 20)+":"+strings.Repeat(" ", 9)+"#"+strings.Repeat(" ", columns-32)+"o", cells(lines[2]))
	require.Contains(t, lines[1], "in 1 requests")
	require.Contains(t, lines[2], "2.1 of    4.0 MB in 2 requests")
}

func TestTimelineOfNothing(t *testing.T) {
	require.Contains(t, Result{}.Timeline([]Row{{Label: "all"}}), "0.0 of    0.0 MB in 0 requests")
}
