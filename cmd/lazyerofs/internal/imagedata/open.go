package imagedata

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/containerd/stargz-snapshotter/fs/source"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
	"github.com/lazyerofs/lazyerofs/fs/format"
	"github.com/lazyerofs/lazyerofs/fs/remote"
)

// Layers opens the layers of one source.
type Layers struct {
	// Source is where the image is.
	Source converter.Source
	// Hosts and Resolver reach it when it is in a registry.
	Hosts    source.RegistryHosts
	Resolver *remote.Resolver
	// Formats read its native layers.
	Formats []format.Format
	// WorkDir holds layers without a chunk index; empty means the system's
	// directory for temporary files.
	WorkDir string
}

// Blob opens the blob of a layer for reading in ranges. The caller calls done.
func (l *Layers) Blob(ctx context.Context, desc ocispec.Descriptor) (blob remote.Blob, done func() error, err error) {
	if local, ok := l.Source.(converter.RandomAccess); ok {
		ra, err := local.ReaderAt(ctx, desc)
		if err != nil {
			return nil, nil, fmt.Errorf("opening %s in %s: %w", desc.Digest, l.Source, err)
		}
		return &localBlob{ra: ra, id: desc.Digest, from: l.Source.String()}, ra.Close, nil
	}
	at, ok := l.Source.(interface{ Origin() (host, repo string) })
	if !ok {
		return nil, nil, fmt.Errorf("layers of %s cannot be read in ranges", l.Source)
	}
	host, repo := at.Origin()
	spec, err := reference.Parse(host + "/" + repo)
	if err != nil {
		return nil, nil, fmt.Errorf("opening %s in %s: %w", desc.Digest, l.Source, err)
	}
	desc.URLs = nil // the registry is the user's choice
	src := source.Source{Hosts: l.Hosts, Name: spec, Target: desc}
	blob, err = remote.Open(ctx, l.Resolver, []source.Source{src}, desc, remote.Options{})
	if err != nil {
		return nil, nil, fmt.Errorf("opening %s in %s: %w", desc.Digest, l.Source, err)
	}
	return blob, func() error { return nil }, nil
}

// Open is a converter.LayerOpener: it opens the image of a native layer and lets
// the strict parser judge it.
func (l *Layers) Open(ctx context.Context, desc ocispec.Descriptor) (_ *converter.ImageData, err error) {
	blob, done, err := l.Blob(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, done())
		}
	}()
	for _, f := range l.Formats {
		if !f.Match(desc) {
			continue
		}
		plan, err := f.Open(ctx, blob, desc)
		if errors.Is(err, format.ErrNotLazy) {
			return l.whole(ctx, desc, done)
		}
		if err != nil {
			return nil, err
		}
		if plan.Meta != nil {
			return nil, fmt.Errorf("layer %s: its format keeps metadata elsewhere, which is not supported here", desc.Digest)
		}
		r := NewReader(ctx, blob, plan)
		policy := erofs.DefaultPolicy(plan.ImageSize())
		policy.MetaHint = plan.PinnedHint.End()
		parsed, err := erofs.Parse(r, policy)
		if err != nil {
			return nil, err
		}
		return &converter.ImageData{Tree: parsed.Tree, Data: r, Size: plan.Data.Size(), Close: done}, nil
	}
	return nil, fmt.Errorf("layer %s: media type %q is none that lazyerofs reads", desc.Digest, desc.MediaType)
}

// whole opens a layer that has no chunk index.
func (l *Layers) whole(ctx context.Context, desc ocispec.Descriptor, done func() error) (*converter.ImageData, error) {
	data, err := converter.OpenWhole(ctx, l.Source, desc, l.WorkDir)
	if err != nil {
		return nil, err
	}
	closeFile := data.Close
	data.Close = func() error { return errors.Join(closeFile(), done()) }
	return data, nil
}

// Stoppable returns r for one copy, which ends with ctx and its cause.
func Stoppable(ctx context.Context, r io.Reader) io.Reader { return &stoppable{ctx, r} }

// stoppable ends with its context.
type stoppable struct {
	ctx context.Context // of the one copy that it serves
	r   io.Reader
}

// Read implements io.Reader.
func (s *stoppable) Read(p []byte) (int, error) {
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	return s.r.Read(p)
}

// localBlob is a blob in a file.
type localBlob struct {
	ra   content.ReaderAt
	id   digest.Digest
	from string // the source, for errors
}

// Digest implements remote.Blob.
func (b *localBlob) Digest() digest.Digest { return b.id }

// Size implements remote.Blob.
func (b *localBlob) Size() int64 { return b.ra.Size() }

// ReadAt implements remote.Blob.
func (b *localBlob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	n, err := b.ra.ReadAt(p, off)
	if n == len(p) {
		return n, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, fmt.Errorf("reading %s at %d: %w", b.id, off, err)
}

// ReadExtents implements remote.Blob.
func (b *localBlob) ReadExtents(ctx context.Context, es []chunk.Extent, fn func(i int, r io.Reader) error) error {
	for i, e := range es {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := fn(i, io.NewSectionReader(b.ra, e.Off, e.Len)); err != nil {
			return err
		}
	}
	return nil
}
