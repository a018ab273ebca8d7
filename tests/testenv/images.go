package testenv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Image is an OCI layout on disk that holds one manifest.
type Image struct {
	Name     string
	Dir      string
	Manifest ocispec.Descriptor
	Layers   []ocispec.Descriptor
	Ready    []string // the workload, as Recipe has it; nil for an image that was not built here
}

// Size is the sum of the layers as the registry holds them, in bytes.
func (i *Image) Size() int64 {
	var n int64
	for _, l := range i.Layers {
		n += l.Size
	}
	return n
}

// Build makes the image or takes it from Cache, where every layer is kept by
// what made it, so recipes that start alike share their first layers. progress
// is told of each layer that has to be built. It needs root, debootstrap, and
// the package registries that this machine is set up for.
func (r Recipe) Build(ctx context.Context, progress func(string)) (*Image, error) {
	cache, err := Cache()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(cache, "images")
	var uppers []string
	var layers []layerBlob
	for n := range r.Steps {
		k, err := key(r.Steps[:n+1])
		if err != nil {
			return nil, err
		}
		at := filepath.Join(dir, "layers", k)
		layer, err := readLayer(at)
		if errors.Is(err, os.ErrNotExist) {
			layer, err = buildOnce(ctx, r.Steps[n], uppers, at, progress)
		}
		if err != nil {
			return nil, err
		}
		layers = append(layers, layer)
		uppers = append(uppers, filepath.Join(at, "upper"))
	}
	k, err := key(r.Steps)
	if err != nil {
		return nil, err
	}
	return r.layout(filepath.Join(dir, r.Name+"-"+k), uppers, layers)
}

// buildOnce builds the layer at at unless another process has done so while
// this one waited for its turn.
func buildOnce(ctx context.Context, s Step, lowers []string, at string, progress func(string)) (layerBlob, error) {
	unlock, err := lock(ctx, at+".lock")
	if err != nil {
		return layerBlob{}, err
	}
	defer unlock()
	layer, err := readLayer(at)
	if errors.Is(err, os.ErrNotExist) {
		progress(s.Name)
		return buildLayer(ctx, s, lowers, at)
	}
	return layer, err
}

// lock takes an exclusive lock on a file, so that two test binaries do not
// build the same layer at once.
func lock(ctx context.Context, file string) (func(), error) {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return nil, fmt.Errorf("locking the image cache: %w", err)
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the image cache: %w", err)
	}
	// A blocking flock(2) cannot be cancelled.
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = wait(ctx, 50*time.Millisecond)
			if err == nil {
				continue
			}
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("locking %s: %w", file, err), f.Close())
		}
		return func() { _ = f.Close() }, nil // closing frees the lock and cannot fail for it
	}
}

func readLayer(at string) (layerBlob, error) {
	data, err := os.ReadFile(filepath.Join(at, "layer.json"))
	if err != nil {
		return layerBlob{}, fmt.Errorf("looking for a built layer: %w", err)
	}
	var l layerBlob
	if err := json.Unmarshal(data, &l); err != nil {
		return layerBlob{}, fmt.Errorf("reading %s/layer.json: %w", at, err)
	}
	return l, nil
}

// buildLayer runs a step and keeps its tree and its blob at at, all or nothing.
func buildLayer(ctx context.Context, s Step, lowers []string, at string) (_ layerBlob, err error) {
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return layerBlob{}, fmt.Errorf("building the layer %q: %w", s.Name, err)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(at), "building-")
	if err != nil {
		return layerBlob{}, fmt.Errorf("building the layer %q: %w", s.Name, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	if err := runStep(ctx, s, lowers, tmp); err != nil {
		return layerBlob{}, err
	}
	layer, err := packLayer(ctx, filepath.Join(tmp, "upper"), filepath.Join(tmp, "layer.tar.gz"))
	if err != nil {
		return layerBlob{}, err
	}
	data, err := json.Marshal(layer)
	if err != nil {
		return layerBlob{}, fmt.Errorf("building the layer %q: %w", s.Name, err)
	}
	if err := os.WriteFile(filepath.Join(tmp, "layer.json"), data, 0o644); err != nil {
		return layerBlob{}, fmt.Errorf("building the layer %q: %w", s.Name, err)
	}
	if err := os.Rename(tmp, at); err != nil {
		return layerBlob{}, fmt.Errorf("building the layer %q: %w", s.Name, err)
	}
	return layer, nil
}

// layout writes the OCI layout of the image at dir, unless it is there.
func (r Recipe) layout(dir string, uppers []string, layers []layerBlob) (*Image, error) {
	blobs := filepath.Join(dir, ocispec.ImageBlobsDir, "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return nil, fmt.Errorf("writing the image %s: %w", r.Name, err)
	}
	image := &Image{Name: r.Name, Dir: dir, Ready: r.Ready}
	epoch := time.Unix(0, 0).UTC()
	env := r.Env
	if len(env) == 0 {
		env = []string{"PATH=" + defaultPath}
	}
	config := ocispec.Image{
		Created:  &epoch,
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Config:   ocispec.ImageConfig{Env: env, Cmd: r.Ready},
		RootFS:   ocispec.RootFS{Type: "layers"},
	}
	for i, l := range layers {
		to := filepath.Join(blobs, l.Digest.Encoded())
		if err := os.Link(filepath.Join(filepath.Dir(uppers[i]), "layer.tar.gz"), to); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("writing the image %s: %w", r.Name, err)
		}
		image.Layers = append(image.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: l.Digest, Size: l.Size})
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.DiffID)
		config.History = append(config.History, ocispec.History{Created: &epoch, CreatedBy: r.Steps[i].Name})
	}
	configDesc, err := writeJSON(blobs, ocispec.MediaTypeImageConfig, config)
	if err != nil {
		return nil, err
	}
	image.Manifest, err = writeJSON(blobs, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    configDesc,
		Layers:    image.Layers,
	})
	if err != nil {
		return nil, err
	}
	return image, writeIndex(dir, image.Manifest)
}

// writeIndex makes dir an OCI layout whose one manifest is tagged "latest".
func writeIndex(dir string, manifest ocispec.Descriptor) error {
	manifest.Annotations = map[string]string{ocispec.AnnotationRefName: "latest"}
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{manifest},
	})
	if err != nil {
		return fmt.Errorf("writing the index of %s: %w", dir, err)
	}
	version, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return fmt.Errorf("writing the index of %s: %w", dir, err)
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, ocispec.ImageIndexFile), index, 0o644),
		os.WriteFile(filepath.Join(dir, ocispec.ImageLayoutFile), version, 0o644))
}

// writeJSON stores v as a blob and returns its descriptor.
func writeJSON(blobs, mediaType string, v any) (ocispec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("encoding %s: %w", mediaType, err)
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if err := os.WriteFile(filepath.Join(blobs, d.Digest.Encoded()), data, 0o644); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("storing %s: %w", mediaType, err)
	}
	return d, nil
}
