package main

import (
	"testing"

	"github.com/stretchr/testify/require"
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
