package layer_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/containerd/stargz-snapshotter/fs/source"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/fs/cache"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
	"github.com/lazyerofs/lazyerofs/fs/format"
	"github.com/lazyerofs/lazyerofs/fs/format/erofsraw"
	"github.com/lazyerofs/lazyerofs/fs/format/formattest"
	"github.com/lazyerofs/lazyerofs/fs/format/zstdseek"
	"github.com/lazyerofs/lazyerofs/fs/layer"
	"github.com/lazyerofs/lazyerofs/fs/remote"
	"github.com/lazyerofs/lazyerofs/fs/remote/remotetest"
)

// realTar is a tar of 120 files from empty to 3 MB in nested directories, and
// what is in them.
func realTar(t *testing.T) ([]byte, map[string][]byte) {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	files := map[string][]byte{}
	rnd := rand.NewChaCha8([32]byte{11})
	for i := range 120 {
		name := fmt.Sprintf("usr/d%d/e%d/file%03d", i%7, i%3, i)
		data := make([]byte, i*i*200)
		_, _ = rnd.Read(data[:len(data)/2]) // half of it compresses
		files[name] = data
		require.NoError(t, w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), Typeflag: tar.TypeReg}))
		_, err := w.Write(data)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return buf.Bytes(), files
}

// realBlob serves blob from a registry on loopback and opens it as the daemon
// does.
func realBlob(t *testing.T, blob []byte, desc ocispec.Descriptor) (remote.Blob, *remotetest.Log) {
	t.Helper()
	var registry remotetest.Registry
	var log remotetest.Log
	require.Equal(t, desc.Digest, registry.AddBlob(blob))
	server := httptest.NewServer(log.Wrap(&registry))
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	host := strings.TrimPrefix(server.URL, "http://")
	certs := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(certs, host), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(certs, host, "hosts.toml"), fmt.Appendf(nil, "server = %q\n", server.URL), 0o600))
	hosts := remote.NewHosts(remote.HostsConfig{CertsDir: certs, Credentials: func(string) (string, string, error) { return "", "", nil }})
	t.Cleanup(hosts.Close)
	resolver := remote.NewResolver(remote.Config{})
	t.Cleanup(func() { require.NoError(t, resolver.Close()) })
	name, err := reference.Parse(host + "/team/app:1")
	require.NoError(t, err)
	b, err := remote.Open(t.Context(), resolver, []source.Source{{Hosts: hosts.RegistryHosts, Name: name, Target: desc}}, desc, remote.Options{})
	require.NoError(t, err)
	return b, &log
}

// TestRealLayer converts a tar, serves it from a registry, makes it ready in two
// ranged requests, fills it, and mounts the data file: the kernel sees every
// file as the tar had it, and the layer's own digest holds.
func TestRealLayer(t *testing.T) {
	src, files := realTar(t)
	for _, tc := range []struct {
		form   differ.Form
		format format.Format
	}{{differ.Zstd, zstdseek.New()}, {differ.Raw, erofsraw.New()}} {
		t.Run(tc.form.String(), func(t *testing.T) {
			var out bytes.Buffer
			res, err := differ.Convert(t.Context(), bytes.NewReader(src), &out, differ.Config{Form: tc.form, SpoolDir: t.TempDir()})
			require.NoError(t, err)
			blob, log := realBlob(t, out.Bytes(), res.Descriptor)
			early := layer.StartEarly(t.Context(), blob, res.Descriptor)
			defer early.Release()
			plan, err := tc.format.Open(t.Context(), early, res.Descriptor)
			require.NoError(t, err)
			file, err := cache.OpenFile(cache.Options{Dir: t.TempDir(), ID: res.Descriptor.Digest, Map: plan.Data})
			require.NoError(t, err)
			l, err := layer.New(layer.Config{Plan: plan, Blob: early, File: file})
			require.NoError(t, err)
			defer func() { require.NoError(t, l.Close(t.Context())) }()
			require.NoError(t, l.Prepare(t.Context()))
			for _, r := range log.Requests() {
				require.NotEmpty(t, r.Range, "a request for the whole layer: %+v", r)
			}
			require.Len(t, log.Requests(), 2, "index and metadata")
			resident, total := l.Progress()
			require.Less(t, resident, total/4)

			require.NoError(t, l.Fill(t.Context()))
			<-l.Complete() // against the digest that the converter gave
			target := t.TempDir()
			_, err = erofs.Mount(t.Context(), erofs.MountConfig{Source: l.Data().Name(), Target: target})
			require.NoError(t, err)
			defer func() { require.NoError(t, erofs.Unmount(target)) }()
			for name, want := range files {
				got, err := os.ReadFile(filepath.Join(target, name))
				require.NoError(t, err)
				require.True(t, bytes.Equal(want, got), name)
			}
		})
	}
}

// TestHostileMetadata: an image whose index and digests are all right, but whose
// metadata the strict parser would not have written, is refused before a mount.
func TestHostileMetadata(t *testing.T) {
	src, _ := realTar(t)
	var out bytes.Buffer
	res, err := differ.Convert(t.Context(), bytes.NewReader(src), &out, differ.Config{Form: differ.Raw, SpoolDir: t.TempDir()})
	require.NoError(t, err)
	image := out.Bytes()[:res.ImageSize]
	prepare := func(image []byte) error {
		data, desc, err := formattest.BuildRaw(image, 64<<10)
		require.NoError(t, err)
		blob := formattest.NewBlob(data)
		plan, err := erofsraw.New().Open(t.Context(), blob, desc)
		require.NoError(t, err)
		file, err := cache.OpenFile(cache.Options{Dir: t.TempDir(), ID: blob.Digest(), Map: plan.Data})
		require.NoError(t, err)
		l, err := layer.New(layer.Config{Plan: plan, Blob: blob, File: file})
		require.NoError(t, err)
		defer func() { require.NoError(t, l.Close(t.Context())) }()
		return l.Prepare(t.Context())
	}
	require.NoError(t, prepare(image))
	var refused *erofs.RefusedError
	for _, off := range []int{1024, 1036, 1100, 1024 + 80} { // in the superblock
		bad := bytes.Clone(image)
		bad[off] ^= 0x40
		require.ErrorAs(t, prepare(bad), &refused, "byte %d", off)
	}
	require.ErrorAs(t, prepare(make([]byte, 64<<10)), &refused)
	require.Error(t, prepare(image[:len(image)/2/4096*4096]))
}
