package convertfunc

import (
	"context"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/labels"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// storeSource is an image in a content store. It does not offer converter.RandomAccess:
// of a store behind a socket, every read is a call.
type storeSource struct {
	cs   content.Store
	root ocispec.Descriptor
}

var (
	_ converter.Source = (*storeSource)(nil)
	_ converter.Target = (*storeTarget)(nil)
)

// String implements converter.Source.
func (s *storeSource) String() string { return "image " + s.root.Digest.String() }

// Root implements converter.Source.
func (s *storeSource) Root(context.Context) (ocispec.Descriptor, error) { return s.root, nil }

// Open implements converter.Source.
func (s *storeSource) Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	ra, err := s.cs.ReaderAt(ctx, desc)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{content.NewReader(ra), ra}, nil
}

// Close implements converter.Source.
func (s *storeSource) Close() error { return nil }

// storeTarget writes an image into a content store. The caller gives it a name.
type storeTarget struct {
	cs   content.Store
	root ocispec.Descriptor
}

// String implements converter.Target.
func (t *storeTarget) String() string { return "the content store" }

// Put implements converter.Target. What the garbage collector must keep with the
// content is in its labels: it follows nothing else.
func (t *storeTarget) Put(ctx context.Context, desc ocispec.Descriptor, open func(context.Context) (io.ReadCloser, error)) (bool, error) {
	existed, err := t.put(ctx, desc, open)
	if err != nil {
		return false, fmt.Errorf("storing %s: %w", desc.Digest, err)
	}
	if images.IsManifestType(desc.MediaType) || images.IsIndexType(desc.MediaType) {
		label := images.SetChildrenLabels(t.cs, images.ChildrenHandler(t.cs))
		if _, err := label(ctx, desc); err != nil {
			return false, fmt.Errorf("labelling %s: %w", desc.Digest, err)
		}
	}
	return existed, nil
}

func (t *storeTarget) put(ctx context.Context, desc ocispec.Descriptor, open func(context.Context) (io.ReadCloser, error)) (bool, error) {
	// The diff id, which containerd's unpacker and converter look for here before
	// they decompress the blob.
	l := map[string]string{}
	switch desc.MediaType {
	case chunk.MediaTypeLayer:
		l[labels.LabelUncompressed] = desc.Digest.String()
	case chunk.MediaTypeLayerZstd:
		if id := desc.Annotations[chunk.AnnotationUncompressedDigest]; id != "" {
			l[labels.LabelUncompressed] = id
		}
	}
	return write(ctx, t.cs, desc, open, l)
}

// Finish implements converter.Target.
func (t *storeTarget) Finish(_ context.Context, root ocispec.Descriptor, _ []byte) error {
	t.root = root
	return nil
}

// Close implements converter.Target.
func (t *storeTarget) Close() error { return nil }
