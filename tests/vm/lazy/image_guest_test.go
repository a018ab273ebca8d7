//go:build guest

package lazy

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/memory"
	"oras.land/oras-go/v2/registry/remote"
)

// image is an image of tar layers and what its files hold after all of them.
type image struct {
	files  map[string][]byte
	layers [][]byte // tars
	rnd    *rand.ChaCha8
}

// newImage makes three layers: small files, big and sparse ones, and a layer that
// deletes and replaces.
func newImage(t *testing.T) *image {
	i := &image{files: map[string][]byte{}, rnd: rand.NewChaCha8([32]byte{1})}
	i.layer(t, func(add func(string, []byte)) {
		for n := range 100 {
			add(fmt.Sprintf("etc/small/%03d", n), i.random(50+97*n))
		}
		add("etc/deleted", i.random(1000))
		add("lib/replaced", i.random(300_000))
	})
	i.layer(t, func(add func(string, []byte)) {
		for n := range 6 {
			add(fmt.Sprintf("usr/lib/big%d", n), i.random(1<<20+12345*n))
		}
		// A file with holes between and behind its data.
		sparse := make([]byte, 1<<20)
		copy(sparse, i.random(100_000))
		copy(sparse[512<<10:], i.random(100_000))
		add("usr/lib/sparse", sparse)
	})
	i.layer(t, func(add func(string, []byte)) {
		add("etc/.wh.deleted", nil)
		add("lib/replaced", i.random(400_000))
		add("opt/new", i.random(10))
		add("opt/empty", nil)
	})
	delete(i.files, "etc/.wh.deleted")
	delete(i.files, "etc/deleted")
	return i
}

func (i *image) random(n int) []byte {
	b := make([]byte, n)
	_, _ = i.rnd.Read(b) // it never fails
	return b
}

// layer makes one layer of what fill adds.
func (i *image) layer(t *testing.T, fill func(add func(string, []byte))) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	fill(func(name string, content []byte) {
		require.NoError(t, w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))}))
		_, err := w.Write(content)
		require.NoError(t, err)
		i.files[name] = content
	})
	require.NoError(t, w.Close())
	i.layers = append(i.layers, b.Bytes())
}

// push pushes the image to ref over plain HTTP.
func (i *image) push(ctx context.Context, t *testing.T, ref string) {
	store := memory.New()
	put := func(mediaType string, b []byte) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
		require.NoError(t, store.Push(ctx, d, bytes.NewReader(b)))
		return d
	}
	putJSON := func(mediaType string, v any) ocispec.Descriptor {
		b, err := json.Marshal(v)
		require.NoError(t, err)
		return put(mediaType, b)
	}
	config := ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		RootFS:   ocispec.RootFS{Type: "layers"},
	}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, l := range i.layers {
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		_, err := w.Write(l)
		require.NoError(t, err)
		require.NoError(t, w.Close())
		m.Layers = append(m.Layers, put(ocispec.MediaTypeImageLayerGzip, z.Bytes()))
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(l))
	}
	m.Config = putJSON(ocispec.MediaTypeImageConfig, config)
	require.NoError(t, store.Tag(ctx, putJSON(m.MediaType, m), "latest"))
	repo, err := remote.NewRepository(ref)
	require.NoError(t, err)
	repo.PlainHTTP = true
	_, err = oras.Copy(ctx, store, "latest", repo, repo.Reference.Reference, oras.DefaultCopyOptions)
	require.NoError(t, err)
}
