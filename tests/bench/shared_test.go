package main

import (
	"context"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/tests/coldstart"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

func TestParseShared(t *testing.T) {
	for _, args := range [][]string{{"-chunk-size", "big"}, {"-chunk-size", "5"}, {"extra"}} {
		_, err := parseShared(args)
		require.Error(t, err, "%q", args)
	}
	o, err := parseShared([]string{"-chunk-size", "64K"})
	require.NoError(t, err)
	require.EqualValues(t, 64<<10, o.chunk)
}

func TestTopLayerIsTheLastOfTheNewerImage(t *testing.T) {
	row, err := topLayer(`{"a":{"layers":[{"chunks":1}]},"b":{"layers":[{"chunks":9,"bytes":9,"sharedChunks":9,"sharedBytes":9},
		{"chunks":4,"bytes":400,"sharedChunks":3,"sharedBytes":100}]}}`)
	require.NoError(t, err)
	require.Equal(t, sharedRow{Chunks: 4, Bytes: 400, SharedChunks: 3, SharedBytes: 100, Share: .25}, row)
	require.Contains(t, (&sharedReport{Rows: []sharedRow{row}}).table(), "25 %")
	for _, bad := range []string{"", `{"b":{}}`} {
		_, err := topLayer(bad)
		require.Error(t, err, bad)
	}
}

// TestReleasesShareTheFilesThatStayed: of two files one is the same in both.
func TestReleasesShareTheFilesThatStayed(t *testing.T) {
	testenv.RequireRoot(t)
	bed, err := coldstart.NewBed(t.TempDir(), testenv.Profile{})
	require.NoError(t, err)
	defer func() { require.NoError(t, bed.Close()) }()
	version := func(n string) testenv.Recipe {
		script := "mkdir $ROOT/srv\nseq 1 300000 >$ROOT/srv/same\nseq " + n + " 300000 >$ROOT/srv/other\n"
		return testenv.Recipe{Name: "release-" + n, Steps: []testenv.Step{{Name: "release " + n, Script: script}}}
	}
	r := release{"release", func(context.Context) (older, newer testenv.Recipe, err error) { return version("2"), version("7"), nil }}
	row, err := r.compare(t.Context(), bed, sharedOptions{chunk: 64 << 10}, io.Discard)
	require.NoError(t, err)
	require.Equal(t, "release-7", row.Newer)
	require.InDelta(t, 0.5, row.Share, 0.1)
	require.Less(t, row.SharedChunks, row.Chunks)
}
