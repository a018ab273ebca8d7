package verify

import (
	"crypto/sha256"
	"maps"
	"testing"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// TestHashTreeFaults: the tree is held against the image, whatever digests and
// annotations agree on.
func TestHashTreeFaults(t *testing.T) {
	l := converted(t, converter.Options{Layer: differ.Config{Form: differ.Raw, Verity: true}})
	_, m, config := l.image()
	good := m.Layers[0]
	fault := func(d ocispec.Descriptor) {
		t.Helper()
		m.Layers[0] = d
		config.RootFS.DiffIDs[0] = d.Digest
		l.replace(m, config)
		report, err := l.verify()
		require.NoError(t, err)
		require.Len(t, report.Faults, 1, "%+v", report.Faults)
		require.Equal(t, "verity", report.Faults[0].Check)
		require.Empty(t, report.Layers[0].Verity)
	}
	d := good
	d.Annotations = maps.Clone(good.Annotations)
	d.Annotations[chunk.AnnotationVerityRoot] = digest.FromString("other").String()
	d.Annotations[chunk.LabelVerityRoot] = d.Annotations[chunk.AnnotationVerityRoot]
	fault(d)

	// A tree that is another than its root and its image ask for, under good digests.
	section, err := chunk.ParseRange(good.Annotations[chunk.AnnotationIndexRange], good.Size)
	require.NoError(t, err)
	for _, at := range []int64{0, 4096 + 7} { // of the superblock, of the digests
		b := l.read(good)
		v, err := chunk.ParseVerity(good.Annotations, section.Off)
		require.NoError(t, err)
		b[v.HashOffset+at] ^= 1
		x, err := chunk.ParseIndex(b[section.Off:section.End()], section.Off)
		require.NoError(t, err)
		i := x.Find(v.HashOffset)
		sum := sha256.Sum256(b[x.At(i).Blob.Off:x.At(i).Blob.End()])
		copy(b[section.Off+32+int64(i)*48+16:], sum[:]) // docs/formats/chunk-index.md
		d := good
		d.Annotations = maps.Clone(good.Annotations)
		d.Annotations[chunk.AnnotationIndexDigest] = digest.FromBytes(b[section.Off:]).String()
		d.Annotations[chunk.LabelIndexDigest] = d.Annotations[chunk.AnnotationIndexDigest]
		fault(l.add(d, b))
	}
}

// TestHashTreeWithoutIndex: a layer that somebody else made has a tree and no chunks.
func TestHashTreeWithoutIndex(t *testing.T) {
	l := converted(t, converter.Options{Layer: differ.Config{Form: differ.Raw, Verity: true}})
	_, m, config := l.image()
	good := m.Layers[0]
	section, err := chunk.ParseRange(good.Annotations[chunk.AnnotationIndexRange], good.Size)
	require.NoError(t, err)
	v, err := chunk.ParseVerity(good.Annotations, section.Off)
	require.NoError(t, err)
	bare := ocispec.Descriptor{MediaType: good.MediaType, Annotations: map[string]string{}}
	v.Annotate(bare.Annotations)
	for name, c := range map[string]struct {
		spoil func(image []byte) []byte
		check string
	}{
		"sound":                 {func(b []byte) []byte { return b }, ""},
		"a digest in the tree":  {func(b []byte) []byte { b[v.HashOffset+4096+7] ^= 1; return b }, "verity"},
		"its superblock":        {func(b []byte) []byte { b[v.HashOffset] ^= 1; return b }, "verity"},
		"the image":             {func(b []byte) []byte { b[v.HashOffset-1] ^= 1; return b }, "verity"},
		"less than all of it":   {func(b []byte) []byte { return b[:len(b)-4096] }, "verity"},
		"something comes after": {func(b []byte) []byte { return append(b, make([]byte, 4096)...) }, "verity"},
	} {
		t.Run(name, func(t *testing.T) {
			d := l.add(bare, c.spoil(l.read(good)[:section.Off]))
			m.Layers[0], config.RootFS.DiffIDs[0] = d, d.Digest
			l.replace(m, config)
			report, err := l.verify()
			require.NoError(t, err)
			if c.check == "" {
				require.Empty(t, report.Faults)
				require.Equal(t, v.Root, report.Layers[0].Verity)
				return
			}
			require.Len(t, report.Faults, 1, "%+v", report.Faults)
			require.Equal(t, c.check, report.Faults[0].Check)
			require.Empty(t, report.Layers[0].Verity)
		})
	}
}
