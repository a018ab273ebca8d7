package native

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"slices"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/format"
	"github.com/lazyerofs/lazyerofs/fs/remote"
)

// An index may name its own media type; any but the draft's is to be treated
// as if there were no index.
const (
	annotationIndexMediaType = "org.erofs.chunk-index.mediaType"
	labelIndexMediaType      = chunk.SnapshotPrefix + "chunk-index.mediaType"
	mediaTypeIndex           = "application/vnd.erofs.chunk-index.v1"
)

// Lookup returns the annotation of desc under the key that a snapshotter sees
// or else under the draft's own, and "" when there is neither.
func Lookup(desc ocispec.Descriptor, label, annotation string) string {
	if v := desc.Annotations[label]; v != "" {
		return v
	}
	return desc.Annotations[annotation]
}

// Kind is one of the two formats but for its Open.
type Kind struct {
	// ID is the format's name.
	ID string
	// Types are its media types.
	Types []string
	// Codec is how its chunks are stored. Framed says that the index is wrapped in
	// a zstd skippable frame.
	Codec  chunk.Codec
	Framed bool
	// Decode is that of a plan, of chunks whose length and digest are right.
	Decode func(blob digest.Digest, dst, src []byte, c chunk.Chunk) ([]byte, error)
}

// Name returns the format's name.
func (k Kind) Name() string { return k.ID }

// Match accepts containerd's and the draft's media type.
func (k Kind) Match(desc ocispec.Descriptor) bool { return slices.Contains(k.Types, desc.MediaType) }

// Plan reads the chunk index in one request, and makes a plan of it that lacks only
// what Whole and Tail are. Errors are those of format.Format's Open.
func (k Kind) Plan(ctx context.Context, blob remote.Blob, desc ocispec.Descriptor) (*format.Plan, *Section, error) {
	s, err := k.index(ctx, blob, desc)
	if err != nil {
		return nil, nil, err
	}
	id, size := blob.Digest(), s.Index.Size()
	tree, err := verity(blob, desc, size)
	if err != nil {
		return nil, nil, err
	}
	hint := ends(desc, chunk.LabelPinned, size)
	plan := &format.Plan{
		Data:       s.Index,
		Verity:     tree,
		PinnedHint: hint,
		Prefetch:   ends(desc, chunk.LabelPrefetch, size),
		Decode: func(dst, src []byte, c chunk.Chunk) ([]byte, error) {
			if err := check(id, src, c); err != nil {
				return nil, err
			}
			return k.Decode(id, dst, src, c)
		},
	}
	plan.Validate = validator(plan.ImageSize(), hint)
	return plan, s, nil
}

// Section is a located, verified and parsed chunk index.
type Section struct {
	// Index is the parsed index. Every chunk carries a digest.
	Index *chunk.Index
	// Range is the section that holds the index, in blob address space.
	Range chunk.Extent
}

// index fetches the chunk index of blob in one read, checks its digest and parses
// it.
func (k Kind) index(ctx context.Context, blob remote.Blob, desc ocispec.Descriptor) (*Section, error) {
	section, want, err := claims(blob, desc)
	if err != nil {
		return nil, err
	}
	raw, err := readIndex(ctx, blob, section, k.Framed, want)
	if err != nil {
		return nil, err
	}
	x, err := chunk.ParseIndex(raw, section.Off)
	if err != nil {
		return nil, about(blob, err)
	}
	switch {
	case x.Codec() != k.Codec:
		return nil, Corrupt("chunk index of "+blob.Digest().String(), "compression %s does not agree with media type %q", x.Codec(), desc.MediaType)
	case x.Len() == 0:
		return nil, notLazy(blob, "its index has no chunks")
	case x.HashSize() == 0:
		return nil, notLazy(blob, "its index carries no digests, so its chunks cannot be verified")
	}
	return &Section{Index: x, Range: section}, nil
}

// readIndex reads the section and checks its digest while it reads, so that the
// registry client knows of a wrong answer and may ask again, another host first.
func readIndex(ctx context.Context, blob remote.Blob, section chunk.Extent, framed bool, want digest.Digest) (index []byte, err error) {
	err = blob.ReadExtents(ctx, []chunk.Extent{section}, func(_ int, r io.Reader) error {
		raw := make([]byte, section.Len)
		if _, err := io.ReadFull(r, raw); err != nil {
			return err
		}
		if framed {
			payload, err := chunk.SkippablePayload(raw)
			if err != nil {
				return err
			}
			raw = payload
		}
		if want.Algorithm().FromBytes(raw) != want {
			return Corrupt("chunk index of "+blob.Digest().String(), "its digest is not %s", want)
		}
		index = raw
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the chunk index of %s: %w", blob.Digest(), err)
	}
	return index, nil
}

// claims reads where the index is and what its digest is, and bounds the read.
func claims(blob remote.Blob, desc ocispec.Descriptor) (chunk.Extent, digest.Digest, error) {
	at := Lookup(desc, chunk.LabelIndexRange, chunk.AnnotationIndexRange)
	sum := Lookup(desc, chunk.LabelIndexDigest, chunk.AnnotationIndexDigest)
	if at == "" || sum == "" {
		return chunk.Extent{}, "", notLazy(blob, "its descriptor names no chunk index and digest; convert it with lazyerofs")
	}
	if m := Lookup(desc, labelIndexMediaType, annotationIndexMediaType); m != "" && m != mediaTypeIndex {
		return chunk.Extent{}, "", notLazy(blob, fmt.Sprintf("its chunk index has the unknown media type %q", m))
	}
	section, err := chunk.ParseRange(at, blob.Size())
	if err != nil {
		return chunk.Extent{}, "", notLazy(blob, err.Error())
	}
	if section.Len > chunk.MaxIndexLen+chunk.SkippableHeaderLen {
		return chunk.Extent{}, "", notLazy(blob, fmt.Sprintf("its chunk index is longer than %d bytes", chunk.MaxIndexLen))
	}
	want, err := digest.Parse(sum)
	if err != nil {
		return chunk.Extent{}, "", notLazy(blob, fmt.Sprintf("the digest of its chunk index, %q, is malformed", sum))
	}
	return section, want, nil
}

// verity reads where the hash tree is, if the annotations name one. Image data that
// ends in something else than they say is refused by the strict parser.
func verity(blob remote.Blob, desc ocispec.Descriptor, size int64) (*chunk.Verity, error) {
	v, err := chunk.ParseVerity(desc.Annotations, size)
	if err != nil {
		return nil, notLazy(blob, err.Error())
	}
	return v, nil
}

// ends returns image data [0, imageEnd) as a label of the kind of LabelPinned
// gives it, cut to size; empty when it is absent or malformed, for it is a hint.
func ends(desc ocispec.Descriptor, label string, size int64) chunk.Extent {
	imageEnd, _, err := chunk.ParseEnds(desc.Annotations[label])
	if err != nil {
		return chunk.Extent{}
	}
	return chunk.Extent{Len: min(imageEnd, size)}
}

// check holds src against the length and the digest of stored chunk c. blob
// names the blob in the error, which is a *chunk.CorruptError.
func check(blob digest.Digest, src []byte, c chunk.Chunk) error {
	if int64(len(src)) != c.Blob.Len {
		return Corrupt(ChunkName(blob, c), "%d bytes came instead of %d", len(src), c.Blob.Len)
	}
	var ok bool
	switch len(c.Sum) {
	case sha256.Size:
		sum := sha256.Sum256(src)
		ok = bytes.Equal(sum[:], c.Sum)
	case sha512.Size:
		sum := sha512.Sum512(src)
		ok = bytes.Equal(sum[:], c.Sum)
	default:
		return Corrupt(ChunkName(blob, c), "it has a digest of %d bytes", len(c.Sum))
	}
	if !ok {
		return Corrupt(ChunkName(blob, c), "its digest is not %x", c.Sum)
	}
	return nil
}

// ChunkName names stored chunk c of blob in an error.
func ChunkName(blob digest.Digest, c chunk.Chunk) string {
	return fmt.Sprintf("bytes [%d, %d) of %s", c.Blob.Off, c.Blob.End(), blob)
}

// Corrupt returns a *chunk.CorruptError for bytes from the registry.
func Corrupt(what, reason string, args ...any) error {
	return &chunk.CorruptError{Origin: chunk.OriginRegistry, What: what, Reason: fmt.Sprintf(reason, args...)}
}

func notLazy(blob remote.Blob, reason string) error {
	return fmt.Errorf("%w: %s: %s", format.ErrNotLazy, blob.Digest(), reason)
}

// about names the blob in an error of the chunk package and turns an unknown
// index into ErrNotLazy.
func about(blob remote.Blob, err error) error {
	if errors.Is(err, chunk.ErrUnknownIndex) {
		return fmt.Errorf("%w: %s: %w", format.ErrNotLazy, blob.Digest(), err)
	}
	return fmt.Errorf("parsing the chunk index of %s: %w", blob.Digest(), err)
}
