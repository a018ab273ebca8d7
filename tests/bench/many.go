package main

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	filesPerDir = 100
	maxFile     = 3000 // bytes; sizes are anything up to it
	readFiles   = 8000 // that the bench of memory reads
)

// manyName is the name of file n of a layer. Layers have no directory in common
// but the root, so that every layer has all of its own directories.
func manyName(layer, n int) string {
	return fmt.Sprintf("layer-%03d/dir-%03d/file-%05d", layer, n/filesPerDir, n)
}

// someFiles names files from all over the image: not so many that a layer would
// become complete.
func someFiles(layers, files int) ([]string, error) {
	total := layers * files
	if total < 2 {
		return nil, errors.New("an image of one file is complete when it is read")
	}
	step := max(2, total/readFiles)
	var names []string
	for i := 0; i < total; i += step {
		names = append(names, manyName(i/files, i%files))
	}
	return names, nil
}

// writeMany makes dir an OCI layout of an image with generated layers, plain tars.
func writeMany(dir string, layers, files int) error {
	blobs := filepath.Join(dir, ocispec.ImageBlobsDir, "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return fmt.Errorf("making layers: %w", err)
	}
	config := ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		RootFS:   ocispec.RootFS{Type: "layers"},
	}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for l := range layers {
		d, err := writeBlob(blobs, ocispec.MediaTypeImageLayer, func(w io.Writer) error { return writeLayer(w, l, files) })
		if err != nil {
			return err
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, d.Digest)
		manifest.Layers = append(manifest.Layers, d)
	}
	var err error
	if manifest.Config, err = writeBlob(blobs, ocispec.MediaTypeImageConfig, encode(config)); err != nil {
		return err
	}
	d, err := writeBlob(blobs, ocispec.MediaTypeImageManifest, encode(manifest))
	if err != nil {
		return err
	}
	d.Annotations = map[string]string{ocispec.AnnotationRefName: "latest"}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{d}}
	for name, v := range map[string]any{ocispec.ImageIndexFile: index, ocispec.ImageLayoutFile: ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}} {
		b, err := json.Marshal(v)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), b, 0o644)
		}
		if err != nil {
			return fmt.Errorf("writing %s: %w", name, err)
		}
	}
	return nil
}

func encode(v any) func(io.Writer) error {
	return func(w io.Writer) error { return json.NewEncoder(w).Encode(v) }
}

// writeBlob stores what fill writes under its digest.
func writeBlob(blobs, mediaType string, fill func(io.Writer) error) (ocispec.Descriptor, error) {
	d := ocispec.Descriptor{MediaType: mediaType}
	f, err := os.CreateTemp(blobs, "new-")
	if err != nil {
		return d, fmt.Errorf("writing a blob: %w", err)
	}
	sum := digest.SHA256.Digester()
	err = fill(io.MultiWriter(f, sum.Hash()))
	st, serr := f.Stat()
	if err = errors.Join(err, serr, f.Close()); err != nil {
		return d, fmt.Errorf("writing a blob: %w", err)
	}
	d.Digest, d.Size = sum.Digest(), st.Size()
	if err := os.Rename(f.Name(), filepath.Join(blobs, d.Digest.Encoded())); err != nil {
		return d, fmt.Errorf("writing a blob: %w", err)
	}
	return d, nil
}

// writeLayer writes layer number l as a tar of small files, half of each of which
// does not compress.
func writeLayer(w io.Writer, l, files int) error {
	tw := tar.NewWriter(w)
	rnd := rand.New(rand.NewPCG(uint64(l), 1))
	content := make([]byte, maxFile)
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("layer-%03d/", l), Mode: 0o755}); err != nil {
		return err
	}
	for n := range files {
		name := manyName(l, n)
		if n%filesPerDir == 0 {
			if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: filepath.Dir(name) + "/", Mode: 0o755}); err != nil {
				return err
			}
		}
		size := 1 + rnd.IntN(maxFile)
		for i := range size / 2 {
			content[i] = byte(rnd.Uint32())
		}
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(size)}); err != nil {
			return err
		}
		if _, err := tw.Write(content[:size]); err != nil {
			return err
		}
	}
	return tw.Close()
}
