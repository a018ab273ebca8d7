package mounts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	ctdlabels "github.com/containerd/containerd/v2/pkg/labels"
	ctdsnapshotters "github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/cmd/lazyerofs/internal/image"
)

// Labels of the snapshot protocol that containerd's unpacker sets
// (core/unpack/unpacker.go).
const (
	labelSnapshotRef = "containerd.io/snapshot.ref"
	labelDiffID      = "containerd.io/snapshot/diff-id"
	labelParentChain = "containerd.io/snapshot/parent-chain-id"
)

// viewPrefix starts the key of the snapshot that holds a mounted image; the
// absolute directory follows.
const viewPrefix = "mount:"

// NotLazyError says that a layer cannot be loaded on demand.
type NotLazyError struct {
	Image string
	Layer string
	Err   error
}

// Error names the image, the reason and what to do. A snapshotter's reason
// names the layer and ends with the class of the error, which came over gRPC
// and says nothing to a person.
func (e *NotLazyError) Error() string {
	s := fmt.Sprintf("layer %s of %s cannot be loaded lazily", e.Layer, e.Image)
	if e.Err != nil {
		reason, _, _ := strings.Cut(e.Err.Error(), "\n")
		s = e.Image + ": " + strings.TrimSuffix(reason, ": "+errdefs.ErrFailedPrecondition.Error())
	}
	return s + "; make a lazy image of it first: lazyerofs convert " + e.Image + " DST"
}

// Unwrap returns the reason, if the snapshotter gave one.
func (e *NotLazyError) Unwrap() error { return e.Err }

// Client mounts images through a snapshotter.
type Client struct {
	// Snapshotter serves the layers.
	Snapshotter snapshots.Snapshotter
}

// Mount mounts img at dir, an existing directory: read-only, or with a
// writable layer of its own that Unmount throws away.
func (c *Client) Mount(ctx context.Context, img *image.Image, dir string, writable bool) (err error) {
	abs, err := Point(dir)
	if err != nil {
		return err
	}
	held, key := "", viewPrefix+abs
	defer func() {
		if err != nil && held != "" {
			err = errors.Join(err, c.release(context.WithoutCancel(ctx), held))
		}
	}()
	if held, err = c.prepareLayers(ctx, img); err != nil {
		return err
	}
	snapshot := c.Snapshotter.View
	if writable {
		snapshot = c.Snapshotter.Prepare
	}
	ms, err := snapshot(ctx, key, held)
	if err != nil {
		return fmt.Errorf("asking for the mounts of %s: %w", img.Ref, err)
	}
	held = key
	if err := mount.All(ms, abs); err != nil {
		return fmt.Errorf("mounting %s at %s: %w", img.Ref, abs, err)
	}
	return nil
}

// Point returns dir as an absolute path without symbolic links and makes sure
// that an image can be mounted there.
func Point(dir string) (string, error) {
	abs, err := Resolve(dir)
	if err != nil {
		return "", err
	}
	st, err := os.Stat(abs)
	if err != nil {
		return "", fmt.Errorf("mount point: %w", err)
	}
	if !st.IsDir() {
		return "", fmt.Errorf("mount point %s is not a directory", abs)
	}
	mounted, err := mountinfo.Mounted(abs)
	if err != nil {
		return "", fmt.Errorf("looking for a mount at %s: %w", abs, err)
	}
	if mounted {
		return "", fmt.Errorf("something is mounted at %s already; unmount it or choose another directory", abs)
	}
	return abs, nil
}

// Resolve returns dir as an absolute path without symbolic links.
func Resolve(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("finding directory %s: %w", dir, err)
	}
	resolved, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return "", fmt.Errorf("finding directory %s: %w", dir, err)
	}
	return resolved, nil
}

// prepareLayers makes every layer of img a committed snapshot and returns the
// name of the highest one made, which after an error may be any or "".
func (c *Client) prepareLayers(ctx context.Context, img *image.Image) (string, error) {
	parent := ""
	for n, chain := range img.ChainIDs() {
		if _, err := c.Snapshotter.Stat(ctx, chain); err == nil {
			parent = chain
			continue
		} else if !errdefs.IsNotFound(err) {
			return parent, fmt.Errorf("looking for layer %d of %s: %w", n, img.Ref, err)
		}
		if err := c.prepareLayer(ctx, img, n, chain, parent); err != nil {
			return parent, err
		}
		parent = chain
	}
	return parent, nil
}

// prepareLayer asks for one layer as containerd does. The answer "already
// exists" is a lazy layer; a writable snapshot means that it would have to be
// unpacked, which is not what the user asked for.
func (c *Client) prepareLayer(ctx context.Context, img *image.Image, n int, chain, parent string) error {
	layer := img.Manifest.Layers[n]
	key := fmt.Sprintf("extract:%d:%s", os.Getpid(), chain)
	_, err := c.Snapshotter.Prepare(ctx, key, parent, snapshots.WithLabels(layerLabels(img, n, chain, parent)))
	switch {
	case errdefs.IsAlreadyExists(err):
		return nil
	case err == nil:
		if err := c.Snapshotter.Remove(ctx, key); err != nil {
			return fmt.Errorf("removing snapshot %s: %w", key, err)
		}
		return &NotLazyError{Image: img.Ref, Layer: layer.Digest.String()}
	case errdefs.IsFailedPrecondition(err):
		return &NotLazyError{Image: img.Ref, Layer: layer.Digest.String(), Err: err}
	}
	return fmt.Errorf("preparing layer %s of %s: %w", layer.Digest, img.Ref, err)
}

// layerLabels returns the labels that containerd would hand to a snapshotter
// for layer n.
func layerLabels(img *image.Image, n int, chain, parent string) map[string]string {
	l := snapshots.FilterInheritedLabels(img.Manifest.Layers[n].Annotations)
	if l == nil {
		l = map[string]string{}
	}
	l[labelSnapshotRef] = chain
	l[labelDiffID] = img.Config.RootFS.DiffIDs[n].String()
	if parent != "" {
		l[labelParentChain] = parent
	}
	l[ctdsnapshotters.TargetRefLabel] = img.Ref
	l[ctdsnapshotters.TargetManifestDigestLabel] = img.Desc.Digest.String()
	l[ctdsnapshotters.TargetLayerDigestLabel] = img.Manifest.Layers[n].Digest.String()
	l[ctdsnapshotters.TargetImageLayersLabel] = layerList(img.Manifest.Layers[n:])
	return l
}

// Labels returns for each layer of img, bottom first, the labels that containerd
// would hand to a snapshotter.
func Labels(img *image.Image) []map[string]string {
	all := make([]map[string]string, len(img.Manifest.Layers))
	parent := ""
	for n, chain := range img.ChainIDs() {
		all[n] = layerLabels(img, n, chain, parent)
		parent = chain
	}
	return all
}

// layerList joins as many digests as fit into one label.
func layerList(layers []ocispec.Descriptor) string {
	var b strings.Builder
	for _, l := range layers {
		next := b.String()
		if next != "" {
			next += ","
		}
		next += l.Digest.String()
		if ctdlabels.Validate(ctdsnapshotters.TargetImageLayersLabel, next) != nil {
			break
		}
		b.Reset()
		b.WriteString(next)
	}
	return b.String()
}

// Unmount unmounts the image at dir and gives up its layers where no other
// mount uses them. A directory that no image is mounted at is an error.
func (c *Client) Unmount(ctx context.Context, dir string) error {
	abs, err := Resolve(dir)
	if err != nil {
		return err
	}
	key := viewPrefix + abs
	if _, err := c.Snapshotter.Stat(ctx, key); err != nil {
		if errdefs.IsNotFound(err) {
			return notMounted(abs)
		}
		return fmt.Errorf("looking for the mount at %s: %w", abs, err)
	}
	if err := mount.Unmount(abs, 0); err != nil {
		return fmt.Errorf("unmounting %s: %w; close what is open below it and try again", abs, err)
	}
	return c.release(ctx, key)
}

// NotMounted is the error of Unmount where there can be no mount at dir.
func NotMounted(dir string) error {
	abs, err := Resolve(dir)
	if err != nil {
		return err
	}
	return notMounted(abs)
}

func notMounted(abs string) error { return fmt.Errorf("no image is mounted at %s by lazyerofs", abs) }

// release removes the snapshot key and then every layer below it that nothing
// else stands on.
func (c *Client) release(ctx context.Context, key string) error {
	for key != "" {
		info, err := c.Snapshotter.Stat(ctx, key)
		if errdefs.IsNotFound(err) {
			break
		}
		if err != nil {
			return fmt.Errorf("looking for snapshot %s: %w", key, err)
		}
		if err := c.Snapshotter.Remove(ctx, key); err != nil {
			if errdefs.IsFailedPrecondition(err) {
				break
			}
			return fmt.Errorf("removing snapshot %s: %w", key, err)
		}
		key = info.Parent
	}
	if cleaner, ok := c.Snapshotter.(snapshots.Cleaner); ok {
		if err := cleaner.Cleanup(ctx); err != nil {
			return fmt.Errorf("cleaning up: %w", err)
		}
	}
	return nil
}

// Dirs lists the directories at which images are mounted.
func (c *Client) Dirs(ctx context.Context) ([]string, error) {
	var dirs []string
	err := c.Snapshotter.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		if dir, ok := strings.CutPrefix(i.Name, viewPrefix); ok {
			dirs = append(dirs, dir)
		}
		return nil
	})
	if err != nil && !errdefs.IsNotFound(err) { // as of a store that nothing was ever put in
		return nil, fmt.Errorf("listing mounts: %w", err)
	}
	return dirs, nil
}
