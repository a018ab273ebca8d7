package verify

import (
	"cmp"
	"strconv"

	digest "github.com/opencontainers/go-digest"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// annotations holds those that say the same thing against each other, and looks for
// what is missing or malformed.
func (r *run) annotations(t *task) {
	notes := t.desc.Annotations
	for _, p := range [][2]string{
		{chunk.LabelIndexRange, notes[chunk.AnnotationIndexRange]},
		{chunk.LabelIndexDigest, notes[chunk.AnnotationIndexDigest]},
		{chunk.LabelUncompressedDigest, notes[chunk.AnnotationUncompressedDigest]},
		{chunk.LabelBlobSize, strconv.FormatInt(t.desc.Size, 10)},
		{chunk.LabelMediaType, t.desc.MediaType},
		{chunk.LabelVerityOffset, notes[chunk.AnnotationVerityOffset]},
		{chunk.LabelVerityRoot, notes[chunk.AnnotationVerityRoot]},
		{chunk.LabelVerityBlock, notes[chunk.AnnotationVerityBlock]},
	} {
		if got, ok := notes[p[0]]; ok && p[1] != "" && got != p[1] {
			r.layerFault(t, "annotation", "layer %s: the annotation %s says %.80q, the descriptor itself %.80q", t.desc.Digest, p[0], got, p[1])
		}
	}
	r.named(t)
	for _, key := range []string{chunk.LabelPinned, chunk.LabelPrefetch} {
		if v, ok := notes[key]; ok {
			if _, _, ok := ends(t, key); !ok {
				r.layerFault(t, "annotation", "layer %s: the annotation %s has the value %.80q, which is no place in the blob", t.desc.Digest, key, v)
			}
		}
	}
}

// named checks those of the chunk index. A layer may have none, but not half of them.
func (r *run) named(t *task) {
	notes := t.desc.Annotations
	for _, p := range [][2]string{
		{chunk.AnnotationIndexRange, chunk.AnnotationIndexDigest},
		{chunk.LabelIndexRange, chunk.LabelIndexDigest},
	} {
		have, lack := p[0], p[1]
		if notes[have] == "" {
			have, lack = lack, have
		}
		if notes[have] != "" && notes[lack] == "" {
			r.layerFault(t, "annotation", "layer %s has the annotation %s but not %s", t.desc.Digest, have, lack)
			return
		}
	}
	at := cmp.Or(notes[chunk.LabelIndexRange], notes[chunk.AnnotationIndexRange])
	if at == "" {
		return
	}
	if _, err := chunk.ParseRange(at, t.desc.Size); err != nil {
		r.layerFault(t, "annotation", "layer %s: where its chunk index is: %v", t.desc.Digest, err)
	}
	sum := cmp.Or(notes[chunk.LabelIndexDigest], notes[chunk.AnnotationIndexDigest])
	if _, err := digest.Parse(sum); err != nil {
		r.layerFault(t, "annotation", "layer %s: the digest of its chunk index, %.80q: %v", t.desc.Digest, sum, err)
	}
	if chunk.IsNativeZstd(t.desc.MediaType) && notes[chunk.AnnotationUncompressedDigest] == "" {
		r.layerFault(t, "annotation", "layer %s has a chunk index but not the annotation %s", t.desc.Digest, chunk.AnnotationUncompressedDigest)
	}
}

// ends reads an annotation of the form "imageEnd:blobEnd". ok says that it is there and
// means a place in the blob.
func ends(t *task, key string) (imageEnd, blobEnd int64, ok bool) {
	imageEnd, blobEnd, err := chunk.ParseEnds(t.desc.Annotations[key])
	ok = err == nil && 0 < imageEnd && 0 < blobEnd && blobEnd <= t.desc.Size
	if !chunk.IsNativeZstd(t.desc.MediaType) {
		ok = ok && imageEnd == blobEnd // image data is stored as it is
	}
	return imageEnd, blobEnd, ok
}

// places holds the annotations of that form against the image: where its metadata ends,
// and where the blob has what it says.
func (r *run) places(t *task, data chunk.Map, meta []erofs.Range) {
	const block = 4096 // in which a writer may count, whatever the image does
	if imageEnd, _, ok := ends(t, chunk.LabelPinned); ok && len(meta) > 0 {
		end := meta[len(meta)-1].Off + meta[len(meta)-1].Len
		if imageEnd < end || imageEnd >= end+block {
			r.layerFault(t, "annotation", "layer %s: the annotation %s says that the metadata ends at byte %d of the image data, but it ends at %d",
				t.desc.Digest, chunk.LabelPinned, imageEnd, end)
			return
		}
	}
	for _, key := range []string{chunk.LabelPinned, chunk.LabelPrefetch} {
		imageEnd, blobEnd, ok := ends(t, key)
		if !ok {
			continue
		}
		i := data.Find(imageEnd - 1)
		switch {
		case i < 0:
			r.layerFault(t, "annotation", "layer %s: the annotation %s has the value %.80q, but its image data has %d bytes",
				t.desc.Digest, key, t.desc.Annotations[key], data.Size())
		case data.At(i).Blob.End() != blobEnd:
			r.layerFault(t, "annotation", "layer %s: the annotation %s has the value %.80q, but the blob has that image data up to byte %d",
				t.desc.Digest, key, t.desc.Annotations[key], data.At(i).Blob.End())
		}
	}
}
