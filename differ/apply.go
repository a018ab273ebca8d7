package differ

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// How differ and snapshotter meet, as containerd's own pair does: the
// snapshotter puts MarkerFile into the directory of a snapshot that it prepares
// for a layer and returns a mount of MountDir inside it; the differ then leaves
// the layer as LayerFile, an EROFS image, in that same directory.
const (
	MarkerFile = ".erofslayer"
	LayerFile  = "layer.erofs"
	MountDir   = "fs"
)

// Apply turns the layer desc into an EROFS image beside the snapshot that mounts
// belong to. A tar is converted; a native layer passes the strict parser; what a
// stream processor takes goes through that first. The layer file appears whole or
// not at all. What is returned is the descriptor of the uncompressed layer, whose
// digest is its DiffID: of a tar the tar's own.
//
// Mounts that are not of a marked snapshot, and media types other than layers,
// give errdefs.ErrNotImplemented, at which containerd asks its next differ. A
// layer that is refused gives errdefs.ErrInvalidArgument.
func (d *Differ) Apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	dir, err := layerDir(mounts)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	var cfg diff.ApplyConfig
	for _, o := range opts {
		if err := o(ctx, desc, &cfg); err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("applying layer %s: %w", desc.Digest, err)
		}
	}
	if !d.knows(ctx, desc.MediaType) {
		err := unknownType(desc)
		// Under containerd's transfer service no other differ is asked, and the user
		// sees the bare text of an errdefs error, which names no layer: the log does.
		log.G(ctx).WithError(err).Warn("a layer cannot be unpacked")
		return ocispec.Descriptor{}, err
	}
	ra, err := d.store.ReaderAt(ctx, desc)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("applying layer %s: opening its content: %w", desc.Digest, err)
	}
	defer func() {
		if err := ra.Close(); err != nil {
			log.G(ctx).WithError(err).Warn("closing the content of a layer")
		}
	}()
	src := &blobReader{ctx: ctx, r: bufio.NewReaderSize(content.NewReader(ra), requestLen), progress: cfg.Progress}
	unpacked := false
	out, err := writeLayer(dir, func(f *os.File) (ocispec.Descriptor, error) {
		out, err := d.unpack(ctx, &unpacking{desc: desc, src: src, f: f, implied: d.implied(mounts)}, cfg.ProcessorPayloads)
		if err != nil {
			return out, err
		}
		unpacked = true
		if d.cfg.Layer.Verity {
			return out, addTree(dir, f)
		}
		return out, removeSidecar(dir) // of an earlier layer, which this one replaces
	})
	if err != nil && unpacked {
		err = errors.Join(err, removeSidecar(dir))
	}
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("applying layer %s: %w", desc.Digest, err)
	}
	return out, nil
}

// requestLen is how much of a blob is asked for at once. For each request containerd
// looks the blob up in its database and opens it.
const requestLen = 1 << 20

// unpacking is a layer on its way into its image.
type unpacking struct {
	desc    ocispec.Descriptor // its media type is that of src
	changed bool               // src is not the blob of desc, but what a processor made of it
	src     io.Reader
	abort   func()      // ends src early
	ended   atomic.Bool // src was read to its end
	short   bool        // and that came too early
	f       *os.File
	implied func(string) (erofs.Attr, bool, error)
}

// through does what reads the layer, and then ends the reading ahead of it, which
// begins when the layer is opened.
func (u *unpacking) through(end func(), apply func() (ocispec.Descriptor, error)) (ocispec.Descriptor, error) {
	defer end()
	out, err := apply()
	u.short = errors.Is(err, ErrTruncated) && u.ended.Load() // zstd's decoder says it of damaged frames, too
	if err != nil && !u.short {
		u.abort() // or a processor that never writes again would be waited for
	}
	return out, err
}

// endNoting is a reader that notes its end.
type endNoting struct {
	io.Reader
	ended *atomic.Bool
}

// Read implements io.Reader.
func (r endNoting) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil {
		r.ended.Store(true)
	}
	return n, err
}

// applyFunc writes the image of one kind of layer and returns the descriptor of
// the uncompressed layer.
type applyFunc func(ctx context.Context, u *unpacking) (ocispec.Descriptor, error)

// applierFor chooses by media type; nil means that the type is none of ours. The
// compression in the type of a tar is not looked at, because it is often wrong:
// the bytes say it.
func applierFor(mediaType string) applyFunc {
	switch mediaType {
	case chunk.MediaTypeLayer, chunk.MediaTypeDraftLayer:
		return applyRaw
	case chunk.MediaTypeLayerZstd, chunk.MediaTypeDraftLayerZstd:
		return applyZstd
	}
	base, suffix, _ := strings.Cut(mediaType, "+")
	switch suffix {
	case "", "gzip", "zstd":
	default:
		return nil
	}
	switch base {
	case ocispec.MediaTypeImageLayer, nonDistributable,
		images.MediaTypeDockerSchema2Layer, images.MediaTypeDockerSchema2LayerGzip, images.MediaTypeDockerSchema2LayerZstd,
		images.MediaTypeDockerSchema2LayerForeign, images.MediaTypeDockerSchema2LayerForeignGzip:
		return applyTar
	}
	return nil
}

// Applies reports whether Apply takes layers of that type as they are, without a
// stream processor.
func Applies(mediaType string) bool { return applierFor(mediaType) != nil }

// nonDistributable is an OCI layer that registries were not to hold. The image
// spec has given the idea up, images with it are left.
const nonDistributable = "application/vnd.oci.image.layer.nondistributable.v1.tar"

// unknownType says what to do about a layer of a type that nobody here can unpack.
func unknownType(desc ocispec.Descriptor) error {
	if strings.HasSuffix(desc.MediaType, "+encrypted") {
		return fmt.Errorf("layer %s is encrypted (%s): name a program that decrypts this media type in [stream_processors] of lazyerofs' configuration: %w",
			desc.Digest, desc.MediaType, errdefs.ErrNotImplemented)
	}
	return fmt.Errorf("layer %s has media type %q, which is not a tar or EROFS layer: rebuild the image with such layers, or name a program that makes one of it in [stream_processors] of lazyerofs' configuration: %w",
		desc.Digest, desc.MediaType, errdefs.ErrNotImplemented)
}

// layerDir returns the directory of the snapshot that mounts belong to, when
// it is one that waits for a layer. The last mount is the one a layer would be
// unpacked to.
func layerDir(mounts []mount.Mount) (string, error) {
	if len(mounts) == 0 {
		return "", fmt.Errorf("no mount to apply a layer to: %w", errdefs.ErrInvalidArgument)
	}
	m := mounts[len(mounts)-1]
	var target string
	switch m.Type {
	case "bind":
		target = m.Source
	case "overlay":
		for _, o := range m.Options {
			if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
				target = dir
			}
		}
	}
	dir := filepath.Dir(target)
	if target == "" || filepath.Base(target) != MountDir {
		return "", fmt.Errorf("a mount of type %q is not of an EROFS snapshot: %w", m.Type, errdefs.ErrNotImplemented)
	}
	if fi, err := os.Lstat(filepath.Join(dir, MarkerFile)); err != nil || !fi.Mode().IsRegular() {
		return "", fmt.Errorf("%s has no %s, it is not of an EROFS snapshot: %w", dir, MarkerFile, errdefs.ErrNotImplemented)
	}
	if m.ReadOnly() {
		// Not ErrNotImplemented: another differ must not try either.
		return "", fmt.Errorf("%s is mounted read-only, its layer is already there: %w", target, errdefs.ErrFailedPrecondition)
	}
	return dir, nil
}

// blobReader reads a blob, ends early when its context does, and reports
// progress in bytes of the blob.
type blobReader struct {
	ctx      context.Context
	r        io.Reader
	n        int64
	progress func(int64)
}

// Read implements io.Reader.
func (b *blobReader) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := b.r.Read(p)
	b.n += int64(n)
	if b.progress != nil && n > 0 {
		b.progress(b.n)
	}
	return n, err
}
