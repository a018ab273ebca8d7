package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/memory"
	"oras.land/oras-go/v2/registry/remote"
)

// Image is an image of tar layers and what its files hold after all of them.
type Image struct {
	// Files are the contents by path, without a leading slash.
	Files map[string][]byte

	layers [][]byte // tars
	rnd    *rand.ChaCha8
	err    error // the first
}

// New makes an image of three layers. Two seeds share no layer, so that an image
// with another seed is cold.
func New(seed byte) (*Image, error) {
	i := &Image{Files: map[string][]byte{}, rnd: rand.NewChaCha8([32]byte{seed})}
	i.layer(func(add func(string, []byte)) {
		for n := range 100 {
			add(fmt.Sprintf("etc/small/%03d", n), i.random(50+97*n))
		}
		add("etc/deleted", i.random(1000))
		add("lib/replaced", i.random(300_000))
	})
	i.layer(func(add func(string, []byte)) {
		for n := range 6 {
			add(fmt.Sprintf("usr/lib/big%d", n), i.random(1<<20+12345*n))
		}
		// A file with holes between and behind its data.
		sparse := make([]byte, 1<<20)
		copy(sparse, i.random(100_000))
		copy(sparse[512<<10:], i.random(100_000))
		add("usr/lib/sparse", sparse)
	})
	i.layer(func(add func(string, []byte)) {
		add("etc/.wh.deleted", nil)
		add("lib/replaced", i.random(400_000))
		add("opt/new", i.random(10))
		add("opt/empty", nil)
	})
	delete(i.Files, "etc/.wh.deleted")
	delete(i.Files, "etc/deleted")
	return i, i.err
}

// Layers is the number of layers.
func (i *Image) Layers() int { return len(i.layers) }

func (i *Image) random(n int) []byte {
	b := make([]byte, n)
	_, _ = i.rnd.Read(b) // it never fails
	return b
}

// layer makes one layer of what fill adds.
func (i *Image) layer(fill func(add func(string, []byte))) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	fill(func(name string, content []byte) {
		err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))})
		if err == nil {
			_, err = w.Write(content)
		}
		i.err = errors.Join(i.err, err)
		i.Files[name] = content
	})
	i.err = errors.Join(i.err, w.Close())
	i.layers = append(i.layers, b.Bytes())
}

// Push pushes the image as tar layers to ref over plain HTTP.
func (i *Image) Push(ctx context.Context, ref string) error {
	store := memory.New()
	put := func(mediaType string, b []byte) (ocispec.Descriptor, error) {
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
		return d, store.Push(ctx, d, bytes.NewReader(b))
	}
	putJSON := func(mediaType string, v any) (ocispec.Descriptor, error) {
		b, err := json.Marshal(v)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		return put(mediaType, b)
	}
	config := ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		RootFS:   ocispec.RootFS{Type: "layers"},
	}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, l := range i.layers {
		z, err := zip(l)
		if err != nil {
			return err
		}
		d, err := put(ocispec.MediaTypeImageLayerGzip, z)
		if err != nil {
			return err
		}
		m.Layers = append(m.Layers, d)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(l))
	}
	var err error
	if m.Config, err = putJSON(ocispec.MediaTypeImageConfig, config); err != nil {
		return err
	}
	top, err := putJSON(m.MediaType, m)
	if err != nil {
		return err
	}
	if err := store.Tag(ctx, top, "latest"); err != nil {
		return err
	}
	repo, err := remote.NewRepository(ref)
	if err != nil {
		return err
	}
	repo.PlainHTTP = true
	_, err = oras.Copy(ctx, store, "latest", repo, repo.Reference.Reference, oras.DefaultCopyOptions)
	return err
}

func zip(b []byte) ([]byte, error) {
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	_, err := w.Write(b)
	err = errors.Join(err, w.Close())
	return z.Bytes(), err
}

// Compare reads all files below root in a random order and says which of them
// cannot be read or differ.
func (i *Image) Compare(root string) error {
	var errs []error
	names := make([]string, 0, len(i.Files))
	for name := range i.Files {
		names = append(names, name)
	}
	rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	for _, name := range names {
		got, err := os.ReadFile(filepath.Join(root, name))
		if err == nil && !bytes.Equal(got, i.Files[name]) {
			err = fmt.Errorf("%s differs", name)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
