package inspect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/fs/format"
)

// Diff says what two images share. Chunks are the same when the digests of their
// stored bytes are; sizes are of stored bytes.
type Diff struct {
	A Side `json:"a"`
	B Side `json:"b"`
	// SharedLayers are blobs that both images have.
	SharedLayers []string `json:"sharedLayers"`
	// SharedChunks and SharedBytes count each distinct chunk that both images have
	// once. What B needs beside A is B's distinct bytes less these.
	SharedChunks int   `json:"sharedChunks"`
	SharedBytes  int64 `json:"sharedBytes"`
}

// Side is one of the images.
type Side struct {
	Ref    string `json:"ref"`
	Digest string `json:"digest"`
	// Chunks and Bytes are of all lazy layers, Distinct and DistinctBytes without
	// the repetitions inside the image.
	Chunks        int         `json:"chunks"`
	Bytes         int64       `json:"bytes"`
	Distinct      int         `json:"distinct"`
	DistinctBytes int64       `json:"distinctBytes"`
	Layers        []DiffLayer `json:"layers"`
}

// DiffLayer is a layer of one of the images.
type DiffLayer struct {
	Digest string `json:"digest"`
	// Reason says why nothing is known of its chunks.
	Reason string `json:"reason,omitempty"`
	Chunks int    `json:"chunks"`
	Bytes  int64  `json:"bytes"`
	// SharedChunks and SharedBytes are of those that the other image has anywhere.
	SharedChunks int   `json:"sharedChunks"`
	SharedBytes  int64 `json:"sharedBytes"`
}

// side is an image with its chunks: stored length by codec and digest.
type side struct {
	Side
	chunks map[string]int64
	layers []map[string]layerChunk
}

// layerChunk says how often a layer has a chunk.
type layerChunk struct {
	times int
	size  int64
}

// Compare finds out what two images share. It fetches chunk indexes only. The
// error is about a registry that did not answer.
func Compare(ctx context.Context, a, b *Subject, formats []format.Format) (*Diff, error) {
	var sides [2]*side
	for i, img := range []*Subject{a, b} {
		s, err := load(ctx, img, formats)
		if err != nil {
			return nil, err
		}
		sides[i] = s
	}
	x, y := sides[0], sides[1]
	x.mark(y)
	y.mark(x)
	d := &Diff{A: x.Side, B: y.Side, SharedLayers: []string{}}
	for key, n := range x.chunks {
		if _, ok := y.chunks[key]; ok {
			d.SharedChunks++
			d.SharedBytes += n
		}
	}
	has := map[string]bool{}
	for _, l := range x.Layers {
		has[l.Digest] = true
	}
	for _, l := range y.Layers {
		if has[l.Digest] {
			d.SharedLayers = append(d.SharedLayers, l.Digest)
			has[l.Digest] = false
		}
	}
	return d, nil
}

// load reads the chunk indexes of an image.
func load(ctx context.Context, img *Subject, formats []format.Format) (*side, error) {
	s := &side{Side: Side{Ref: img.Ref, Digest: img.Desc.Digest.String()}, chunks: map[string]int64{}}
	for _, desc := range img.Manifest.Layers {
		l, chunks, err := indexOf(ctx, desc, img, formats)
		if err != nil {
			return nil, fmt.Errorf("reading the index of layer %s of %s: %w", desc.Digest, img.Ref, err)
		}
		s.Chunks += l.Chunks
		s.Bytes += l.Bytes
		for key, c := range chunks {
			if _, ok := s.chunks[key]; !ok {
				s.chunks[key] = c.size
				s.DistinctBytes += c.size
			}
		}
		s.Layers = append(s.Layers, l)
		s.layers = append(s.layers, chunks)
	}
	s.Distinct = len(s.chunks)
	return s, nil
}

// indexOf lists the chunks of a layer.
func indexOf(ctx context.Context, desc ocispec.Descriptor, of *Subject, formats []format.Format) (DiffLayer, map[string]layerChunk, error) {
	for _, f := range formats {
		if f.Match(desc) {
			return chunksOf(ctx, f, desc, of)
		}
	}
	return DiffLayer{Digest: desc.Digest.String(), Bytes: desc.Size, Reason: notNative}, nil, nil
}

// chunksOf is indexOf for a layer in the format f.
func chunksOf(ctx context.Context, f format.Format, desc ocispec.Descriptor, of *Subject) (l DiffLayer, chunks map[string]layerChunk, err error) {
	l = DiffLayer{Digest: desc.Digest.String(), Bytes: desc.Size}
	blob, done, err := of.Open(ctx, desc)
	if err != nil {
		return l, nil, err
	}
	defer func() { err = errors.Join(err, done()) }()
	plan, err := f.Open(ctx, blob, desc)
	if err != nil {
		if !finding(err) {
			return l, nil, err
		}
		l.Reason = err.Error()
		return l, nil, nil
	}
	l.Bytes = 0
	chunks = make(map[string]layerChunk, plan.Data.Len())
	for i := range plan.Data.Len() {
		c := plan.Data.At(i)
		key := c.Codec.String() + string(c.Sum)
		chunks[key] = layerChunk{times: chunks[key].times + 1, size: c.Blob.Len}
		l.Chunks++
		l.Bytes += c.Blob.Len
	}
	return l, chunks, nil
}

// mark notes in each layer what the other image has.
func (s *side) mark(other *side) {
	for i, chunks := range s.layers {
		for key, c := range chunks {
			if _, ok := other.chunks[key]; ok {
				s.Layers[i].SharedChunks += c.times
				s.Layers[i].SharedBytes += int64(c.times) * c.size
			}
		}
	}
}

// Print writes the comparison for people.
func (d *Diff) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	var lines []string
	for i, s := range []Side{d.A, d.B} {
		lines = append(lines, fmt.Sprintf("%c: %s\n%s", 'A'+i, s.Ref, s.Digest), "LAYER\tCHUNKS\tSTORED\tSHARED CHUNKS\tSHARED\t")
		for _, l := range s.Layers {
			if l.Reason != "" {
				lines = append(lines, fmt.Sprintf("%s\t\t%s\tnot known: %s", short(l.Digest), Bytes(l.Bytes), l.Reason))
				continue
			}
			lines = append(lines, strings.Join([]string{
				short(l.Digest), fmt.Sprint(l.Chunks), Bytes(l.Bytes), fmt.Sprint(l.SharedChunks), Bytes(l.SharedBytes), percent(l.SharedBytes, l.Bytes),
			}, "\t"))
		}
		lines = append(lines, fmt.Sprintf("distinct\t%d\t%s\n", s.Distinct, Bytes(s.DistinctBytes)))
	}
	lines = append(lines, fmt.Sprintf("shared: %d layers, %d distinct chunks, %s, %s of B; B needs %s beside A",
		len(d.SharedLayers), d.SharedChunks, Bytes(d.SharedBytes), percent(d.SharedBytes, d.B.DistinctBytes), Bytes(d.B.DistinctBytes-d.SharedBytes)))
	for _, l := range lines {
		if _, err := fmt.Fprintln(t, l); err != nil {
			return fmt.Errorf("printing: %w", err)
		}
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("printing: %w", err)
	}
	return nil
}

func percent(part, whole int64) string {
	if whole == 0 {
		return "0 %"
	}
	return fmt.Sprintf("%.1f %%", 100*float64(part)/float64(whole))
}
