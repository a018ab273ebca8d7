package differ

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
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
// belong to. A tar is converted; a native layer passes the strict parser. The
// layer file appears whole or not at all. What is returned is the descriptor of
// the uncompressed layer, whose digest is its DiffID: of a tar the tar's own.
//
// Mounts that are not of a marked snapshot, and media types other than layers,
// give errdefs.ErrNotImplemented, at which containerd asks its next differ. A
// layer that is refused gives errdefs.ErrInvalidArgument.
func (d *Differ) Apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	convert, err := applierFor(ctx, desc)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
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
	ra, err := d.store.ReaderAt(ctx, desc)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("applying layer %s: opening its content: %w", desc.Digest, err)
	}
	defer func() {
		if err := ra.Close(); err != nil {
			log.G(ctx).WithError(err).Warn("closing the content of a layer")
		}
	}()
	src := &blobReader{ctx: ctx, r: content.NewReader(ra), progress: cfg.Progress}
	out, err := writeLayer(dir, func(f *os.File) (ocispec.Descriptor, error) {
		return convert(ctx, desc, src, f)
	})
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("applying layer %s: %w", desc.Digest, err)
	}
	return out, nil
}

// applyFunc writes the image of one kind of layer to f and returns the
// descriptor of the uncompressed layer.
type applyFunc func(ctx context.Context, desc ocispec.Descriptor, src io.Reader, f *os.File) (ocispec.Descriptor, error)

// applierFor chooses by media type. The compression in the type of a tar is not
// looked at, because it is often wrong: the bytes say it.
func applierFor(ctx context.Context, desc ocispec.Descriptor) (applyFunc, error) {
	switch desc.MediaType {
	case chunk.MediaTypeLayer, chunk.MediaTypeDraftLayer:
		return applyRaw, nil
	case chunk.MediaTypeLayerZstd, chunk.MediaTypeDraftLayerZstd:
		return applyZstd, nil
	}
	if _, err := images.DiffCompression(ctx, desc.MediaType); err != nil {
		return nil, fmt.Errorf("layer %s has media type %q, which is not a layer that can be applied: %w",
			desc.Digest, desc.MediaType, errdefs.ErrNotImplemented)
	}
	if strings.Contains(desc.MediaType, "encrypted") {
		return nil, fmt.Errorf("layer %s is encrypted: %w", desc.Digest, errdefs.ErrNotImplemented)
	}
	return applyTar, nil
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

// writeLayer makes LayerFile in dir with what fill writes. It is there whole and
// on disk, or not at all.
func writeLayer(dir string, fill func(*os.File) (ocispec.Descriptor, error)) (ocispec.Descriptor, error) {
	f, err := os.CreateTemp(dir, LayerFile+".new-*")
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("creating layer file: %w", err)
	}
	out, err := fill(f)
	if err == nil {
		err = publish(f, filepath.Join(dir, LayerFile))
	}
	if cerr := f.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("closing layer file: %w", cerr)
	}
	if err != nil {
		// Gone already if it got its name; nothing else can be done about an error.
		_ = os.Remove(f.Name())
		return ocispec.Descriptor{}, err
	}
	return out, nil
}

// publish gives f its final name after its content is on disk.
func publish(f *os.File, name string) error {
	if err := f.Chmod(0o644); err != nil {
		return fmt.Errorf("publishing layer file: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("syncing layer file: %w", err)
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return fmt.Errorf("publishing layer file: %w", err)
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return fmt.Errorf("publishing layer file: %w", err)
	}
	err = dir.Sync()
	if cerr := dir.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("syncing the directory of the layer file: %w", err)
	}
	return nil
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
