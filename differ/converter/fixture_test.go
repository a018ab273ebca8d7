package converter_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, testenv.IgnoreRegistry()) }

// hosts speaks plain HTTP to loopback.
var hosts = docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost))

// layout builds an OCI layout by hand.
type layout struct {
	t   testing.TB
	dir string
}

func newLayout(t testing.TB) *layout {
	l := &layout{t, t.TempDir()}
	l.write("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	return l
}

func (l *layout) write(name string, b []byte) {
	path := filepath.Join(l.dir, name)
	require.NoError(l.t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(l.t, os.WriteFile(path, b, 0o644))
}

func (l *layout) add(mediaType string, b []byte) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	l.write("blobs/sha256/"+d.Digest.Encoded(), b)
	return d
}

func (l *layout) addJSON(mediaType string, v any) ocispec.Descriptor {
	b, err := json.Marshal(v)
	require.NoError(l.t, err)
	return l.add(mediaType, b)
}

// tag writes index.json with the entries, each under its name.
func (l *layout) tag(entries map[string]ocispec.Descriptor) {
	idx := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}}
	for name, d := range entries {
		d.Annotations = map[string]string{ocispec.AnnotationRefName: name}
		idx.Manifests = append(idx.Manifests, d)
	}
	b, err := json.Marshal(idx)
	require.NoError(l.t, err)
	l.write("index.json", b)
}

// tarOf makes a layer with the given files.
func tarOf(t testing.TB, files map[string]string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, dir := range []string{"etc/", "usr/"} {
		require.NoError(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}))
	}
	for _, name := range sortedKeys(files) {
		require.NoError(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(files[name]))}))
		_, err := w.Write([]byte(files[name]))
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	for i := range keys {
		for j := i; j > 0 && keys[j] < keys[j-1]; j-- {
			keys[j], keys[j-1] = keys[j-1], keys[j]
		}
	}
	return keys
}

func gzipped(t testing.TB, b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return out.Bytes()
}

func zstded(t testing.TB, b []byte) []byte {
	w, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	defer w.Close()
	return w.EncodeAll(b, nil)
}

// tars are the layers of the test image.
func tars(t testing.TB, seed string) [][]byte {
	return [][]byte{
		tarOf(t, map[string]string{"etc/os-release": "ID=test", "usr/big": string(bytes.Repeat([]byte("0123456789abcdef"+seed), 60_000))}),
		tarOf(t, map[string]string{"usr/app": "app " + seed}),
		tarOf(t, map[string]string{"etc/conf": "x"}),
	}
}

// image adds a manifest with layers in three compressions and a config with
// fields that no Go type knows.
func (l *layout) image(p ocispec.Platform, seed string) ocispec.Descriptor {
	var layers []ocispec.Descriptor
	var ids []digest.Digest
	for i, b := range tars(l.t, seed) {
		ids = append(ids, digest.FromBytes(b))
		switch i {
		case 0:
			layers = append(layers, l.add(ocispec.MediaTypeImageLayerGzip, gzipped(l.t, b)))
		case 1:
			layers = append(layers, l.add(ocispec.MediaTypeImageLayerZstd, zstded(l.t, b)))
		default:
			layers = append(layers, l.add(ocispec.MediaTypeImageLayer, b))
		}
	}
	config := map[string]any{
		"architecture": p.Architecture, "os": p.OS, "variant": p.Variant,
		"config": map[string]any{"Env": []string{"A=b"}, "Unknown": "kept"}, "moby.thing": 7,
		"history": []any{map[string]any{"created_by": "one"}, map[string]any{"created_by": "two", "empty_layer": true}},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": ids},
	}
	return l.manifest(l.addJSON(ocispec.MediaTypeImageConfig, config), layers)
}

func (l *layout) manifest(config ocispec.Descriptor, layers []ocispec.Descriptor) ocispec.Descriptor {
	return l.addJSON(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: config, Layers: layers, Annotations: map[string]string{"org.example": "kept"},
	})
}

var (
	amd64 = ocispec.Platform{OS: "linux", Architecture: "amd64"}
	arm64 = ocispec.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}
	other = ocispec.Platform{OS: "windows", Architecture: "amd64"}
)

// index adds an index of two Linux images, a Windows image and a build record.
func (l *layout) index() ocispec.Descriptor {
	entry := func(p ocispec.Platform, d ocispec.Descriptor) ocispec.Descriptor {
		d.Platform = &p
		return d
	}
	record := entry(ocispec.Platform{OS: "unknown", Architecture: "unknown"}, l.image(amd64, "record"))
	return l.addJSON(ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Annotations: map[string]string{"org.example.index": "kept"},
		Manifests: []ocispec.Descriptor{
			entry(amd64, l.image(amd64, "a")), entry(arm64, l.image(arm64, "b")), entry(other, l.image(other, "w")), record,
		},
	})
}

// run converts from one location to another.
func run(t testing.TB, from, to string, opts converter.Options) (converter.Result, error) {
	t.Helper()
	src, err := converter.ParseSource(from, hosts)
	require.NoError(t, err)
	dst, err := converter.ParseTarget(to, hosts)
	require.NoError(t, err)
	if opts.WorkDir == "" {
		opts.WorkDir = t.TempDir()
	}
	res, err := converter.Image(t.Context(), src, dst, opts)
	require.NoError(t, src.Close())
	require.NoError(t, dst.Close())
	left, rerr := os.ReadDir(opts.WorkDir)
	require.NoError(t, rerr)
	require.Empty(t, left, "nothing may stay in the work directory")
	return res, err
}

// fetch reads a descriptor's content from a location, verified.
func fetch(t testing.TB, at string, d ocispec.Descriptor) []byte {
	t.Helper()
	src, err := converter.ParseSource(at, hosts)
	require.NoError(t, err)
	defer src.Close()
	_, err = src.Root(t.Context())
	require.NoError(t, err)
	rc, err := src.Open(t.Context(), d)
	require.NoError(t, err)
	defer rc.Close()
	b, err := io.ReadAll(rc)
	require.NoError(t, err)
	require.Equal(t, d.Digest, digest.FromBytes(b))
	return b
}

func fetchJSON(t testing.TB, at string, d ocispec.Descriptor, v any) {
	t.Helper()
	require.NoError(t, json.Unmarshal(fetch(t, at, d), v))
}

func root(t testing.TB, at string) ocispec.Descriptor {
	t.Helper()
	src, err := converter.ParseSource(at, hosts)
	require.NoError(t, err)
	defer src.Close()
	d, err := src.Root(t.Context())
	require.NoError(t, err)
	return d
}
