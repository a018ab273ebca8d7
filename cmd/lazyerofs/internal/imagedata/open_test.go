package imagedata

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/differ/converter/layertar"
	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
	"github.com/lazyerofs/lazyerofs/fs/format"
	"github.com/lazyerofs/lazyerofs/fs/format/all"
	"github.com/lazyerofs/lazyerofs/fs/format/formattest"
	"github.com/lazyerofs/lazyerofs/fs/remote"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, testenv.IgnoreRegistry()) }

// layer converts a tar of files up to the given size.
func layer(t *testing.T, files, size int, cfg differ.Config) (differ.Result, []byte, []byte) {
	t.Helper()
	var tarball, blob bytes.Buffer
	w := tar.NewWriter(&tarball)
	rnd := rand.New(rand.NewSource(1))
	body := make([]byte, size)
	for i := range files {
		n := size / (1 + i%5)
		rnd.Read(body[:n])
		require.NoError(t, w.WriteHeader(&tar.Header{Name: fmt.Sprintf("dir-%02d/file-%04d", i%7, i), Mode: 0o644, Size: int64(n)}))
		_, err := w.Write(body[:n])
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	cfg.SpoolDir = t.TempDir()
	res, err := differ.Convert(t.Context(), bytes.NewReader(tarball.Bytes()), &blob, cfg)
	require.NoError(t, err)
	return res, blob.Bytes(), tarball.Bytes()
}

// layout stores a blob so that a layout source finds it.
func layout(t *testing.T, d ocispec.Descriptor, blob []byte) converter.Source {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "blobs/sha256", d.Digest.Encoded())
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, blob, 0o600))
	src, err := converter.ParseSource("oci:"+dir, nil)
	require.NoError(t, err)
	return src
}

// requireSameFiles holds the tar of an open layer against the one it was made of.
func requireSameFiles(t *testing.T, want []byte, data *converter.ImageData) {
	t.Helper()
	var out bytes.Buffer
	require.NoError(t, layertar.Write(t.Context(), &out, data.Tree, data.Data))
	list := func(b []byte) map[string]digest.Digest {
		m := map[string]digest.Digest{}
		for r := tar.NewReader(bytes.NewReader(b)); ; {
			hdr, err := r.Next()
			if err == io.EOF {
				return m
			}
			require.NoError(t, err)
			if hdr.Typeflag == tar.TypeReg {
				d, err := digest.FromReader(r)
				require.NoError(t, err)
				m[hdr.Name] = d
			}
		}
	}
	require.Equal(t, list(want), list(out.Bytes()))
	require.NoError(t, data.Close())
}

func TestOpenLocalLayers(t *testing.T) {
	for _, form := range []differ.Form{differ.Raw, differ.Zstd} {
		res, blob, tarball := layer(t, 60, 700<<10, differ.Config{Form: form})
		l := &Layers{Source: layout(t, res.Descriptor, blob), Formats: all.All(), WorkDir: t.TempDir()}
		data, err := l.Open(t.Context(), res.Descriptor)
		require.NoError(t, err)
		requireSameFiles(t, tarball, data)

		// The same without its index is a layer as other tools write it.
		bare := res.Descriptor
		bare.Annotations = nil
		data, err = l.Open(t.Context(), bare)
		require.NoError(t, err)
		requireSameFiles(t, tarball, data)
		left, err := os.ReadDir(l.WorkDir)
		require.NoError(t, err)
		require.Empty(t, left)
	}
}

// TestCorruptBytesAreOfTheirSource: a layout is no registry.
func TestCorruptBytesAreOfTheirSource(t *testing.T) {
	res, blob, _ := layer(t, 20, 300<<10, differ.Config{})
	for what, at := range map[string]int{"bytes [0, ": 0, "chunk index of ": len(blob) - 1} {
		bad := bytes.Clone(blob)
		bad[at] ^= 1
		src := layout(t, res.Descriptor, bad)
		_, err := (&Layers{Source: src, Formats: Formats(all.All()), WorkDir: t.TempDir()}).Open(t.Context(), res.Descriptor)
		var corrupt *chunk.CorruptError
		require.ErrorAs(t, err, &corrupt)
		require.ErrorContains(t, err, ": "+what)
		require.ErrorContains(t, err, " from "+src.String()+" is corrupt: ")
		require.NotContains(t, err.Error(), "registry")
	}
}

func TestOpenRefuses(t *testing.T) {
	res, blob, _ := layer(t, 20, 300<<10, differ.Config{})
	bare := res.Descriptor
	bare.Annotations = nil
	open := func(d ocispec.Descriptor, b []byte) error {
		l := &Layers{Source: layout(t, d, b), Formats: all.All(), WorkDir: t.TempDir()}
		data, err := l.Open(t.Context(), d)
		if err == nil {
			require.NoError(t, data.Close())
		}
		return err
	}
	changed := bytes.Clone(blob)
	changed[len(changed)-20] ^= 1
	var corrupt *chunk.CorruptError
	require.ErrorAs(t, open(res.Descriptor, changed), &corrupt, "the index")
	changedIndex := bytes.Clone(changed) // no decoder looks at it
	changed = bytes.Clone(blob)
	changed[100] ^= 1
	require.ErrorAs(t, open(res.Descriptor, changed), &corrupt, "the metadata")
	require.ErrorContains(t, open(bare, changedIndex), "do not match its digest")
	require.Error(t, open(bare, blob[:len(blob)/2]))
	require.Error(t, open(bare, blob[:10]))
	tarLayer := res.Descriptor
	tarLayer.MediaType = ocispec.MediaTypeImageLayerGzip
	require.ErrorContains(t, open(tarLayer, blob), "none that lazyerofs reads")
	absent := &Layers{Source: layout(t, bare, blob), Formats: all.All()}
	bare.Digest = digest.FromString("absent")
	_, err := absent.Open(t.Context(), bare)
	require.ErrorContains(t, err, bare.Digest.String())
}

// TestBombIsRefused has a blob that decompresses to far more than its superblock
// announces.
func TestBombIsRefused(t *testing.T) {
	res, blob, _ := layer(t, 1, 4096, differ.Config{Form: differ.Raw})
	enc, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	bomb := enc.EncodeAll(append(blob[:res.ImageSize:res.ImageSize], make([]byte, 80<<20)...), nil)
	require.NoError(t, enc.Close())
	d := ocispec.Descriptor{MediaType: chunk.MediaTypeLayerZstd, Digest: digest.FromBytes(bomb), Size: int64(len(bomb))}
	l := &Layers{Source: layout(t, d, bomb), Formats: all.All(), WorkDir: t.TempDir()}
	_, err = l.Open(t.Context(), d)
	require.ErrorContains(t, err, "far more comes")
}

// TestOpenFromARegistry reads ranges over HTTP: nothing but the chunks of files.
func TestOpenFromARegistry(t *testing.T) {
	reg, err := testenv.StartRegistry(t.TempDir())
	require.NoError(t, err)
	defer func() { require.NoError(t, reg.Close()) }()
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	res, blob, tarball := layer(t, 60, 700<<10, differ.Config{})
	hosts := remote.NewHosts(remote.HostsConfig{CertsDir: t.TempDir()})
	defer hosts.Close()
	forDocker := func(host string) ([]docker.RegistryHost, error) {
		return hosts.RegistryHosts(reference.Spec{Locator: host + "/"})
	}
	dst, err := converter.ParseTarget(reg.Addr()+"/x:1", forDocker)
	require.NoError(t, err)
	_, err = dst.Put(t.Context(), res.Descriptor, func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(blob)), nil
	})
	require.NoError(t, err)
	src, err := converter.ParseSource(reg.Addr()+"/x:1", forDocker)
	require.NoError(t, err)
	resolver := remote.NewResolver(remote.Config{})
	defer func() { require.NoError(t, resolver.Close()) }()
	reg.Reset()
	l := &Layers{Source: src, Hosts: hosts.RegistryHosts, Resolver: resolver, Formats: all.All()}
	data, err := l.Open(t.Context(), res.Descriptor)
	require.NoError(t, err)
	requireSameFiles(t, tarball, data)
	var got int64
	for _, r := range reg.Log() {
		if r.Method == http.MethodGet {
			require.NotEmpty(t, r.Range)
			got += r.Bytes
		}
	}
	require.LessOrEqual(t, got, res.Descriptor.Size*11/10, "hardly anything is fetched twice")
}

func planOf(t *testing.T, res differ.Result, blob []byte) (*formattest.Blob, *format.Plan) {
	t.Helper()
	b := formattest.NewBlob(blob)
	for _, f := range all.All() {
		if f.Match(res.Descriptor) {
			plan, err := f.Open(t.Context(), b, res.Descriptor)
			require.NoError(t, err)
			return b, plan
		}
	}
	t.Fatal("no format")
	return nil, nil
}

func TestReaderAgreesWithTheImage(t *testing.T) {
	res, blob, _ := layer(t, 40, 900<<10, differ.Config{Form: differ.Raw})
	b, plan := planOf(t, res, blob)
	r := NewReader(t.Context(), b, plan)
	rnd := rand.New(rand.NewSource(2))
	for range 300 {
		off := rnd.Int63n(res.ImageSize)
		p := make([]byte, 1+rnd.Int63n(1<<20))
		n, err := r.ReadAt(p, off)
		if off+int64(len(p)) > res.ImageSize {
			require.ErrorIs(t, err, io.EOF)
		} else {
			require.NoError(t, err)
			require.Len(t, p, n)
		}
		require.True(t, bytes.Equal(blob[off:off+int64(n)], p[:n]))
		require.LessOrEqual(t, r.bytes, int64(keepBytes))
	}
}

// TestMemoryIsBoundedForLargeChunks has chunks of which two are more than the
// bound.
func TestMemoryIsBoundedForLargeChunks(t *testing.T) {
	res, blob, _ := layer(t, 1, 52<<20, differ.Config{ChunkSize: 20 << 20, Level: 1})
	b, plan := planOf(t, res, blob)
	r := NewReader(t.Context(), b, plan)
	n, err := io.Copy(io.Discard, io.NewSectionReader(r, 0, res.ImageSize))
	require.NoError(t, err)
	require.Equal(t, res.ImageSize, n)
	require.LessOrEqual(t, len(r.kept), 2)
	require.Equal(t, r.Fetched(), res.Descriptor.Size-res.IndexSize, "each chunk once")
}

func TestReaderFetchesForwardOnlyWhenReadForward(t *testing.T) {
	res, blob, _ := layer(t, 30, 1<<20, differ.Config{})
	b, plan := planOf(t, res, blob)
	r := NewReader(t.Context(), b, plan)
	at := plan.Data.At(plan.Data.Len() / 2).Data.Off
	before := b.Requests()
	_, err := r.ReadAt(make([]byte, 10), at)
	require.NoError(t, err)
	require.Equal(t, plan.Data.At(plan.Data.Find(at)).Blob.Len, r.Fetched(), "one chunk for a read at random")
	_, err = erofs.Parse(NewReader(t.Context(), b, plan), erofs.DefaultPolicy(res.ImageSize))
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, io.NewSectionReader(r, 0, res.ImageSize))
	require.NoError(t, err)
	require.Less(t, b.Requests()-before, int64(plan.Data.Len()/4), "many chunks in each request")
}
