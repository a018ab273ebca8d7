package chunk

import (
	"maps"
	"strings"
	"testing"

	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

func TestVerityAnnotations(t *testing.T) {
	want := Verity{HashOffset: 8192, Root: digest.FromString("root"), BlockSize: 4096}
	good := map[string]string{}
	want.Annotate(good)
	got, err := ParseVerity(good, 16384)
	require.NoError(t, err)
	require.Equal(t, &want, got)
	require.Equal(t, want.Root.Encoded(), got.Hex())

	onlySpec := map[string]string{AnnotationVerityOffset: "8192", AnnotationVerityRoot: want.Root.Encoded()}
	got, err = ParseVerity(onlySpec, 16384)
	require.NoError(t, err)
	require.Equal(t, &want, got, "the draft's keys alone, the block size left out, the root without an algorithm")

	got, err = ParseVerity(map[string]string{AnnotationIndexRange: "1:2"}, 16384)
	require.NoError(t, err)
	require.Nil(t, got)

	for what, change := range map[string]map[string]string{
		"no root":                {AnnotationVerityRoot: "", LabelVerityRoot: ""},
		"no place":               {AnnotationVerityOffset: "", LabelVerityOffset: ""},
		"a negative place":       {LabelVerityOffset: "-4096"},
		"the start":              {LabelVerityOffset: "0"},
		"between blocks":         {LabelVerityOffset: "8191"},
		"the end":                {LabelVerityOffset: "16384"},
		"beyond any file":        {LabelVerityOffset: strings.Repeat("9", 40)},
		"another algorithm":      {LabelVerityRoot: digest.SHA512.FromString("root").String()},
		"a short root":           {LabelVerityRoot: "sha256:abcd"},
		"words":                  {LabelVerityRoot: "root"},
		"block of no power of 2": {LabelVerityBlock: "4095"},
		"large blocks":           {LabelVerityBlock: "8192"},
		"small blocks":           {LabelVerityBlock: "256"},
		"block words":            {LabelVerityBlock: "big"},
	} {
		bad := maps.Clone(good)
		maps.Copy(bad, change)
		got, err := ParseVerity(bad, 16384)
		require.Error(t, err, what)
		require.Nil(t, got, what)
	}
}

func FuzzParseVerity(f *testing.F) {
	f.Add("8192", digest.FromString("x").String(), "4096", int64(16384))
	f.Add("0", "sha256:", "", int64(0))
	f.Fuzz(func(t *testing.T, at, root, block string, size int64) {
		v, err := ParseVerity(map[string]string{LabelVerityOffset: at, AnnotationVerityRoot: root, LabelVerityBlock: block}, size)
		if err != nil || v == nil {
			return
		}
		require.Positive(t, v.HashOffset)
		require.Less(t, v.HashOffset, size)
		require.Zero(t, v.HashOffset%v.BlockSize)
		again := map[string]string{}
		v.Annotate(again)
		got, err := ParseVerity(again, size)
		require.NoError(t, err)
		require.Equal(t, v, got)
	})
}
