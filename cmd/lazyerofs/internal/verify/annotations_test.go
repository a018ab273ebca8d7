package verify

import (
	"testing"

	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// TestAnnotationFaults: a hint that is wrong costs a mount time, and half a chunk index
// makes a layer that is not lazy.
func TestAnnotationFaults(t *testing.T) {
	set := func(key, value string) func(map[string]string) {
		return func(notes map[string]string) { notes[key] = value }
	}
	drop := func(keys ...string) func(map[string]string) {
		return func(notes map[string]string) {
			for _, key := range keys {
				delete(notes, key)
			}
		}
	}
	ends := func(key string, image, blob int64) func(map[string]string) {
		return func(notes map[string]string) {
			i, b, err := chunk.ParseEnds(notes[chunk.LabelPinned])
			require.NoError(t, err)
			notes[key] = chunk.FormatEnds(i+image, b+blob)
		}
	}
	const noPlace, raw = "which is no place in the blob", true
	index := []string{chunk.AnnotationIndexRange, chunk.AnnotationIndexDigest, chunk.LabelIndexRange, chunk.LabelIndexDigest}
	for name, c := range map[string]struct {
		spoil func(map[string]string)
		want  string // of the one fault; "" if there is none
		raw   bool
	}{
		"pinned empty":            {set(chunk.LabelPinned, ""), noPlace, false},
		"pinned without an end":   {set(chunk.LabelPinned, "4096"), noPlace, false},
		"pinned nothing":          {set(chunk.LabelPinned, "0:0"), noPlace, false},
		"pinned too little":       {set(chunk.LabelPinned, "5:1"), "says that the metadata ends at byte 5 of the image data, but it ends at ", false},
		"pinned a byte less":      {ends(chunk.LabelPinned, -1, 0), "but it ends at ", false},
		"pinned a block more":     {ends(chunk.LabelPinned, 4096, 0), "but it ends at ", false},
		"pinned elsewhere":        {ends(chunk.LabelPinned, 0, -1), "but the blob has that image data up to byte ", false},
		"pinned twice, raw":       {ends(chunk.LabelPinned, 0, -1), noPlace, raw},
		"pinned a block more raw": {ends(chunk.LabelPinned, 4096, 4096), "but it ends at ", raw},
		"pinned absent":           {drop(chunk.LabelPinned), "", false},
		"prefetch nothing":        {set(chunk.LabelPrefetch, "0:0"), noPlace, false},
		"prefetch too much":       {ends(chunk.LabelPrefetch, 1<<40, 0), "but its image data has ", false},
		"prefetch elsewhere":      {ends(chunk.LabelPrefetch, 0, 1), "but the blob has that image data up to byte ", false},
		"prefetch, as pinned":     {ends(chunk.LabelPrefetch, 0, 0), "", false},
		"no digest of the index":  {drop(chunk.AnnotationIndexDigest, chunk.LabelIndexDigest), "has the annotation org.erofs.chunk-index.range but not org.erofs.chunk-index.digest", false},
		"no place of the index":   {drop(chunk.AnnotationIndexRange), "has the annotation org.erofs.chunk-index.digest but not org.erofs.chunk-index.range", raw},
		"half of the labels":      {drop(chunk.LabelIndexRange), "but not containerd.io/snapshot/erofs.chunk-index.range", raw},
		"no labels of the index":  {drop(chunk.LabelIndexRange, chunk.LabelIndexDigest), "", false},
		"no index":                {drop(index...), "", raw},
		"no index, zstd":          {drop(append(index, chunk.AnnotationUncompressedDigest, chunk.LabelUncompressedDigest)...), "", false},
		"no uncompressed digest":  {drop(chunk.AnnotationUncompressedDigest), "has a chunk index but not the annotation org.erofs.uncompressed-digest", false},
		"index outside":           {func(n map[string]string) { n[index[0]], n[index[2]] = "9:5", "9:5" }, "where its chunk index is: ", false},
		"malformed index digest":  {func(n map[string]string) { n[index[1]], n[index[3]] = "x", "x" }, "the digest of its chunk index, \"x\": ", false},
		"uncompressed elsewhere": {func(n map[string]string) {
			drop(index[:2]...)(n)
			delete(n, chunk.AnnotationUncompressedDigest)
			n[chunk.LabelUncompressedDigest] = digest.FromString("x").String()
			drop(index[2:]...)(n)
		}, "its annotation says ", false},
	} {
		t.Run(name, func(t *testing.T) {
			opts := converter.Options{}
			if c.raw {
				opts.Layer.Form = differ.Raw
			}
			l := converted(t, opts)
			_, m, config := l.image()
			c.spoil(m.Layers[0].Annotations)
			l.replace(m, config)
			report, err := l.verify()
			require.NoError(t, err)
			if c.want == "" {
				require.Empty(t, report.Faults)
				return
			}
			require.Len(t, report.Faults, 1, "%+v", report.Faults)
			require.Equal(t, "annotation", report.Faults[0].Check)
			require.Contains(t, report.Faults[0].Text, c.want)
		})
	}
}
