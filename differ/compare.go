package differ

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/epoch"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// checkpointRef begins the reference under which containerd's client writes the
// writable layer of a checkpoint. It asks for no media type, and its restore
// looks for a tar+gzip layer.
const checkpointRef = "checkpoint-rw-"

// Compare writes what upper changes over its parent lower to the content store
// and returns the descriptor of that layer, with every annotation that makes a
// native layer lazily mountable. Its DiffID is in the content's label
// "containerd.io/uncompressed"; the annotations are labels of the content too.
//
// Only the upper directory is read: nothing is mounted, and no layer below is
// looked at. So upper must be mounts of a snapshot of ours and lower those of its
// parent. Anything else, and an upper directory that refers to data or names
// below it (overlayfs' redirect and metacopy), gives errdefs.ErrNotImplemented,
// at which containerd's walking differ compares the two trees.
//
// A container that writes meanwhile should be paused: as with any copy of a tree
// that changes, each file is what it was when it was read.
func (d *Differ) Compare(ctx context.Context, lower, upper []mount.Mount, opts ...diff.Opt) (ocispec.Descriptor, error) {
	var cfg diff.Config
	for _, o := range opts {
		if err := o(&cfg); err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("comparing snapshots: %w", err)
		}
	}
	if cfg.SourceDateEpoch == nil {
		cfg.SourceDateEpoch = epoch.FromContext(ctx)
	}
	desc, err := d.compare(ctx, lower, upper, cfg)
	if errors.Is(err, errdefs.ErrNotImplemented) {
		log.G(ctx).WithError(err).Info("a comparison is left to containerd's walking differ, which reads the whole image")
	}
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("comparing snapshots: %w", err)
	}
	return desc, nil
}

func (d *Differ) compare(ctx context.Context, lower, upper []mount.Mount, cfg diff.Config) (ocispec.Descriptor, error) {
	u, err := d.upperDir(lower, upper)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	u.bound = cfg.SourceDateEpoch
	if cfg.MediaType == "" {
		cfg.MediaType = d.defaultMediaType(cfg.Reference)
	}
	write, err := d.layerWriter(u, cfg)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return d.save(ctx, cfg, write)
}

func (d *Differ) defaultMediaType(ref string) string {
	switch {
	case strings.HasPrefix(ref, checkpointRef):
		return ocispec.MediaTypeImageLayerGzip
	case d.cfg.MediaType != "":
		return d.cfg.MediaType
	}
	return chunk.MediaTypeLayerZstd
}

// layerWriter chooses the form of the layer by media type.
func (d *Differ) layerWriter(u upperDir, cfg diff.Config) (blobWriter, error) {
	native := d.cfg.Layer
	native.First, native.Implied = nil, nil
	switch cfg.MediaType {
	case chunk.MediaTypeLayer, chunk.MediaTypeLayerZstd:
		native.Form = Zstd
		if cfg.MediaType == chunk.MediaTypeLayer {
			native.Form = Raw
		}
		return func(ctx context.Context, w io.Writer) (written, error) {
			return writeNative(ctx, u, w, native)
		}, nil
	}
	var compress compressFunc
	switch cfg.MediaType {
	case ocispec.MediaTypeImageLayer, images.MediaTypeDockerSchema2Layer:
	case ocispec.MediaTypeImageLayerGzip, images.MediaTypeDockerSchema2LayerGzip:
		compress = gzipWriter
	case ocispec.MediaTypeImageLayerZstd, images.MediaTypeDockerSchema2LayerZstd:
		compress = zstdWriter
	default:
		return nil, fmt.Errorf("a layer of media type %q cannot be written, ask for %q or an OCI tar layer: %w",
			cfg.MediaType, chunk.MediaTypeLayerZstd, errdefs.ErrNotImplemented)
	}
	if cfg.Compressor != nil {
		compress = func(w io.Writer) (io.WriteCloser, error) { return cfg.Compressor(w, cfg.MediaType) }
	}
	return func(ctx context.Context, w io.Writer) (written, error) {
		return writeTar(ctx, u, w, compress)
	}, nil
}

// layerStack is what mounts of a snapshot are made of.
type layerStack struct {
	dirs  []string // from the top down, the upper directory first if there is one
	marks string   // what overlayfs' own attributes begin with; "" without overlayfs
}

// stackOf reads the mounts of a snapshot.
func stackOf(mounts []mount.Mount) (layerStack, error) {
	if len(mounts) != 1 {
		return layerStack{}, fmt.Errorf("%d mounts are not of one of our snapshots: %w", len(mounts), errdefs.ErrNotImplemented)
	}
	m := mounts[0]
	switch m.Type {
	case "bind":
		return layerStack{dirs: []string{m.Source}}, nil
	case "overlay":
	default:
		return layerStack{}, fmt.Errorf("a mount of type %q is not of one of our snapshots: %w", m.Type, errdefs.ErrNotImplemented)
	}
	s := layerStack{marks: "trusted.overlay."}
	var upper, lowers []string
	for _, o := range m.Options {
		key, value, _ := strings.Cut(o, "=")
		switch key {
		case "upperdir":
			upper = []string{value}
		case "lowerdir":
			lowers = strings.Split(value, ":")
		case "userxattr":
			s.marks = "user.overlay."
		case "lowerdir+", "datadir+":
			return layerStack{}, fmt.Errorf("a mount with the option %q is not of one of our snapshots: %w", key, errdefs.ErrNotImplemented)
		}
	}
	s.dirs = slices.Concat(upper, lowers)
	if slices.Contains(s.dirs, "") || len(s.dirs) == 0 {
		return layerStack{}, fmt.Errorf("an overlay without directories is not of one of our snapshots: %w", errdefs.ErrNotImplemented)
	}
	return s, nil
}

// upperDir returns the directory that holds all that upper changes over lower.
func (d *Differ) upperDir(lower, upper []mount.Mount) (upperDir, error) {
	up, err := stackOf(upper)
	if err != nil {
		return upperDir{}, err
	}
	top, rest := up.dirs[0], up.dirs[1:]
	if !d.ours(top) {
		return upperDir{}, fmt.Errorf("%s is not the upper directory of one of our snapshots: %w", top, errdefs.ErrNotImplemented)
	}
	if _, err := os.Lstat(filepath.Join(filepath.Dir(top), LayerFile)); err == nil {
		// Not ErrNotImplemented: the directory is empty, another differ would say that
		// the layer is.
		return upperDir{}, fmt.Errorf("%s holds a layer that was unpacked and not committed: %w", filepath.Dir(top), errdefs.ErrFailedPrecondition)
	}
	if len(rest) == 0 {
		err = d.nothing(lower)
	} else if low, lerr := stackOf(lower); lerr != nil {
		err = lerr
	} else if !slices.Equal(low.dirs, rest) {
		err = fmt.Errorf("the first snapshot is not the parent of the second: %w", errdefs.ErrNotImplemented)
	}
	return upperDir{path: top, marks: up.marks}, err
}

// nothing checks that lower is what a snapshot without a parent stands on: the
// empty directory of a view of nothing.
func (d *Differ) nothing(lower []mount.Mount) error {
	if len(lower) == 0 {
		return nil
	}
	low, err := stackOf(lower)
	if err != nil {
		return err
	}
	if len(low.dirs) == 1 && d.ours(low.dirs[0]) {
		ents, err := os.ReadDir(low.dirs[0])
		if err != nil {
			return fmt.Errorf("looking at the parent: %w", err)
		}
		if len(ents) == 0 {
			return nil
		}
	}
	return fmt.Errorf("the first snapshot is not the parent of the second: %w", errdefs.ErrNotImplemented)
}

// ours reports whether dir is the directory for changes of one of our snapshots.
func (d *Differ) ours(dir string) bool {
	return d.cfg.Snapshots != "" && filepath.Base(dir) == MountDir && filepath.Clean(dir) == dir &&
		filepath.Dir(filepath.Dir(dir)) == filepath.Clean(d.cfg.Snapshots)
}

// written says what a blobWriter wrote.
type written struct {
	diffID      digest.Digest
	annotations map[string]string
}

// blobWriter writes a layer blob.
type blobWriter func(ctx context.Context, w io.Writer) (written, error)
