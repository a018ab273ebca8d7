package imagedata

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/containerd/stargz-snapshotter/fs/source"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

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
		return &localBlob{ra: ra, id: desc.Digest}, ra.Close, nil
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
			return l.unpacked(ctx, desc, done)
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

// unpacked reads a layer that has no chunk index, from its first byte to its
// last, into an unnamed file.
func (l *Layers) unpacked(ctx context.Context, desc ocispec.Descriptor, done func() error) (_ *converter.ImageData, err error) {
	dir := l.WorkDir
	if dir == "" {
		dir = os.TempDir()
	}
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("making a file for layer %s: %w", desc.Digest, &os.PathError{Op: "open", Path: dir, Err: err})
	}
	f := os.NewFile(uintptr(fd), dir+"/(image)")
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if err := l.unpack(ctx, desc, f); err != nil {
		return nil, fmt.Errorf("unpacking layer %s: %w", desc.Digest, err)
	}
	size, err := imageSize(f)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", desc.Digest, err)
	}
	parsed, err := erofs.Parse(io.NewSectionReader(f, 0, size), erofs.DefaultPolicy(size))
	if err != nil {
		return nil, err
	}
	return &converter.ImageData{Tree: parsed.Tree, Data: f, Size: size, Close: func() error { return errors.Join(f.Close(), done()) }}, nil
}

// maxWindow bounds the memory of a decoder, as clients do.
const maxWindow = 128 << 20

// unpack writes the image data of a blob and holds the blob against its digest.
func (l *Layers) unpack(ctx context.Context, desc ocispec.Descriptor, f *os.File) error {
	rc, err := l.Source.Open(ctx, desc)
	if err != nil {
		return err
	}
	defer rc.Close()
	sum := desc.Digest.Verifier()
	in := io.TeeReader(io.LimitReader(rc, desc.Size+1), sum)
	out := in
	if desc.MediaType == chunk.MediaTypeLayerZstd || desc.MediaType == chunk.MediaTypeDraftLayerZstd {
		dec, err := zstd.NewReader(in, zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return err
		}
		defer dec.Close()
		out = dec
	}
	if err := copyImage(f, &stoppable{ctx, out}); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return err
	}
	if !sum.Verified() {
		return errors.New("the bytes that came do not match its digest")
	}
	return nil
}

// copyImage copies an image and what follows it. A small blob can decompress to
// more than any disk holds, so there is a limit: the length that the superblock
// says and, behind it, the largest hash tree or index that it can have.
func copyImage(f *os.File, src io.Reader) error {
	if _, err := io.CopyN(f, src, superOff+superLen); err != nil {
		return fmt.Errorf("it is shorter than an EROFS superblock: %w", err)
	}
	size, err := imageSize(f)
	if err != nil {
		return err
	}
	limit := size + size/64 + chunk.MaxIndexLen
	n, err := io.Copy(f, io.LimitReader(src, limit))
	if err == nil && n == limit {
		err = fmt.Errorf("it is far longer than the %d bytes of its image", size)
	}
	return err
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

// Superblock fields that say how long an image is (fs/erofs/erofs_fs.h).
const (
	superOff   = 1024
	superLen   = 128
	offBlkBits = 12
	offBlocks  = 36
)

// imageSize reads an image's length from its superblock; the parser checks it.
func imageSize(f io.ReaderAt) (int64, error) {
	sb := make([]byte, superLen)
	if _, err := f.ReadAt(sb, superOff); err != nil {
		return 0, fmt.Errorf("it is shorter than an EROFS superblock: %w", err)
	}
	bits := sb[offBlkBits]
	if bits < 9 || bits > 16 {
		return 0, fmt.Errorf("it is not an EROFS image: a block size of 2^%d", bits)
	}
	return int64(binary.LittleEndian.Uint32(sb[offBlocks:])) << bits, nil
}

// localBlob is a blob in a file.
type localBlob struct {
	ra content.ReaderAt
	id digest.Digest
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
