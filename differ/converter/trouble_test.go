package converter_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/fs/remote/remotetest"
)

// TestTokenExpiresBeforeUpload has each blob's first upload meet a token that
// has just expired: the body, sent or not, must come again from its start.
func TestTokenExpiresBeforeUpload(t *testing.T) {
	reg := registry(t)
	tokens := &remotetest.Tokens{}
	var mu sync.Mutex
	seen := map[string]bool{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		d := r.URL.Query().Get("digest")
		if r.Method == http.MethodPut && d != "" && !seen[d] {
			seen[d] = true
			tokens.Expire()
		}
		mu.Unlock()
		tokens.Wrap(reg).ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	addr := strings.TrimPrefix(server.URL, "http://")
	authorized := func(host string) ([]docker.RegistryHost, error) {
		return docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost), docker.WithAuthorizer(docker.NewDockerAuthorizer()))(host)
	}
	l := newLayout(t)
	l.tag(map[string]ocispec.Descriptor{"one": l.image(amd64, "a")})
	native := "oci:" + t.TempDir()
	_, err := run(t, "oci:"+l.dir, native, host)
	require.NoError(t, err)
	opts := host
	opts.Parallel = 1 // an expiry hits every request under way; each is allowed one
	for from, to := range map[string]string{"oci:" + l.dir: "/lazy:1", native: "/native:1"} {
		src, err := converter.ParseSource(from, authorized)
		require.NoError(t, err)
		dst, err := converter.ParseTarget(addr+to, authorized)
		require.NoError(t, err)
		res, err := converter.Image(t.Context(), src, dst, opts)
		require.NoError(t, err)
		require.Equal(t, res.Digest, root(t, reg.Addr()+to).Digest)
		checkImage(t, reg.Addr()+to, root(t, reg.Addr()+to), differ.Zstd)
		mu.Lock()
		clear(seen)
		mu.Unlock()
	}
}

// TestIndexInRegistry looks at what a client finds under the tag of a
// multi-platform image.
func TestIndexInRegistry(t *testing.T) {
	reg := registry(t)
	l := newLayout(t)
	l.tag(map[string]ocispec.Descriptor{"multi": l.index()})
	at := reg.Addr() + "/multi:1"
	res, err := run(t, "oci:"+l.dir, at, converter.Options{AllPlatforms: true})
	require.NoError(t, err)
	top := root(t, at)
	require.Equal(t, res.Digest, top.Digest)
	require.Equal(t, ocispec.MediaTypeImageIndex, top.MediaType)
	var idx ocispec.Index
	fetchJSON(t, at, top, &idx)
	for _, d := range idx.Manifests {
		checkImage(t, at, d, differ.Zstd)
	}
	var tags []string
	for _, r := range reg.Log() {
		if _, ref, ok := strings.Cut(r.Path, "/manifests/"); ok && r.Method == http.MethodPut {
			tags = append(tags, ref)
		}
	}
	require.Equal(t, "1", tags[len(tags)-1], "the tag comes last")
	for _, ref := range tags[:len(tags)-1] {
		require.True(t, strings.HasPrefix(ref, "sha256:"), ref)
	}
	// From the registry it converts to the same again, as native layers.
	again, err := run(t, at, "oci:"+t.TempDir(), converter.Options{AllPlatforms: true})
	require.NoError(t, err)
	require.Equal(t, res.Digest, again.Digest)
}

func TestArchivesAreReproducible(t *testing.T) {
	l := newLayout(t)
	l.tag(map[string]ocispec.Descriptor{"one": l.image(amd64, "a")})
	dir := t.TempDir()
	for _, name := range []string{"a.tar", "b.tar"} {
		_, err := run(t, "oci:"+l.dir, "oci-archive:"+filepath.Join(dir, name), host)
		require.NoError(t, err)
	}
	require.NoError(t, os.Symlink("b.tar", filepath.Join(dir, "link")))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "b.tar"), []byte("old"), 0o600))
	_, err := run(t, "oci:"+l.dir, "oci-archive:"+filepath.Join(dir, "link"), host)
	require.NoError(t, err)
	to, err := os.Readlink(filepath.Join(dir, "link"))
	require.NoError(t, err)
	require.Equal(t, "b.tar", to)
	require.NoError(t, os.Symlink("c.tar", filepath.Join(dir, "dangling")))
	_, err = run(t, "oci:"+l.dir, "oci-archive:"+filepath.Join(dir, "dangling"), host)
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(dir, "c.tar"), "where the link leads")
	a, err := os.ReadFile(filepath.Join(dir, "a.tar"))
	require.NoError(t, err)
	b, err := os.ReadFile(filepath.Join(dir, "b.tar"))
	require.NoError(t, err)
	require.Equal(t, a, b)
	names, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, names, 5, "nothing but the archives and the links")
}

// TestInterruptedLeavesNothing cancels in every phase of a conversion into an
// archive over one that is already there.
func TestInterruptedLeavesNothing(t *testing.T) {
	l := newLayout(t)
	l.tag(map[string]ocispec.Descriptor{"one": l.image(amd64, "a")})
	for _, phase := range []converter.Phase{converter.Convert, converter.Push, converter.Done} {
		t.Run(phase.String(), func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "x.tar")
			require.NoError(t, os.WriteFile(file, []byte("old"), 0o600))
			src, err := converter.ParseSource("oci:"+l.dir, hosts)
			require.NoError(t, err)
			dst, err := converter.ParseTarget("oci-archive:"+file, hosts)
			require.NoError(t, err)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			opts := host
			opts.Progress = func(e converter.Event) {
				if e.Phase == phase {
					cancel()
				}
			}
			_, err = converter.Image(ctx, src, dst, opts)
			require.ErrorIs(t, err, context.Canceled)
			require.NoError(t, dst.Close())
			names, err := os.ReadDir(dir)
			require.NoError(t, err)
			require.Len(t, names, 1)
			b, err := os.ReadFile(file)
			require.NoError(t, err)
			require.Equal(t, "old", string(b), "what was there stays until the new archive is whole")
		})
	}
}

func TestPlacesThatCannotBeUsed(t *testing.T) {
	l := newLayout(t)
	l.tag(map[string]ocispec.Descriptor{"one": l.image(amd64, "a")})
	src, err := converter.ParseSource("oci:"+l.dir, hosts)
	require.NoError(t, err)
	dst, err := converter.ParseTarget("oci:"+t.TempDir(), hosts)
	require.NoError(t, err)
	opts := host
	opts.WorkDir = filepath.Join(t.TempDir(), "absent")
	_, err = converter.Image(t.Context(), src, dst, opts)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, opts.WorkDir)

	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err = converter.ParseTarget("oci:"+file+"/x", hosts)
	require.ErrorContains(t, err, "making OCI layout")

	broken := errors.New("certs.d is broken")
	src, err = converter.ParseSource("localhost:1/x:1", func(string) ([]docker.RegistryHost, error) { return nil, broken })
	require.NoError(t, err)
	_, err = converter.Image(t.Context(), src, dst, host)
	require.ErrorIs(t, err, broken)
}

// TestSameLayerTwice has an image that lists one layer twice, and two images
// that say different things about one native layer.
func TestSameLayerTwice(t *testing.T) {
	l := newLayout(t)
	var m ocispec.Manifest
	require.NoError(t, json.Unmarshal(l.read(l.image(amd64, "a")), &m))
	var config map[string]any
	require.NoError(t, json.Unmarshal(l.read(m.Config), &config))
	rootfs, ok := config["rootfs"].(map[string]any)
	require.True(t, ok)
	ids, ok := rootfs["diff_ids"].([]any)
	require.True(t, ok)
	rootfs["diff_ids"] = append(ids, ids[0])
	twice := l.manifest(l.addJSON(ocispec.MediaTypeImageConfig, config), append(m.Layers, m.Layers[0]))
	l.tag(map[string]ocispec.Descriptor{"x": twice})
	first := "oci:" + t.TempDir()
	res, err := run(t, "oci:"+l.dir, first, host)
	require.NoError(t, err)
	layers := res.Images[0].Layers
	require.Len(t, layers, 4)
	require.Equal(t, layers[0].Digest, layers[3].Digest)

	n := newLayout(t)
	n.dir = strings.TrimPrefix(first, "oci:")
	var mine ocispec.Manifest
	require.NoError(t, json.Unmarshal(n.read(n.first()), &mine))
	mine.Layers[0].Annotations = map[string]string{"mine": "1"}
	other := n.addJSON(ocispec.MediaTypeImageManifest, mine)
	n.tag(map[string]ocispec.Descriptor{"x": n.addJSON(ocispec.MediaTypeImageIndex, ocispec.Index{
		MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{n.first(), other},
	})})
	to := "oci:" + t.TempDir()
	_, err = run(t, first, to, converter.Options{AllPlatforms: true})
	require.NoError(t, err)
	var idx ocispec.Index
	fetchJSON(t, to, root(t, to), &idx)
	require.Len(t, idx.Manifests, 2)
	var second ocispec.Manifest
	fetchJSON(t, to, idx.Manifests[1], &second)
	require.Equal(t, map[string]string{"mine": "1"}, second.Layers[0].Annotations)
}

func TestResultAsJSON(t *testing.T) {
	l := newLayout(t)
	l.tag(map[string]ocispec.Descriptor{"x": l.index()})
	to := "oci:" + t.TempDir()
	res, err := run(t, "oci:"+l.dir, to, converter.Options{AllPlatforms: true})
	require.NoError(t, err)
	b, err := json.Marshal(res)
	require.NoError(t, err)
	var got map[string]any
	require.NoError(t, json.Unmarshal(b, &got))
	for _, key := range []string{"source", "target", "digest", "mediaType", "images", "skipped"} {
		require.Contains(t, got, key)
	}
	for _, img := range res.Images {
		for _, lr := range img.Layers {
			require.Positive(t, lr.Size)
			require.Positive(t, lr.TarSize)
			require.Positive(t, lr.MetaSize)
			require.Positive(t, lr.Inodes)
			require.GreaterOrEqual(t, lr.ImageSize, lr.MetaSize)
		}
	}
}

// TestPushThatGivesUp: a source that fails before its first byte leaves no request
// behind.
func TestPushThatGivesUp(t *testing.T) {
	reg := registry(t)
	dst, err := converter.ParseTarget(reg.Addr()+"/given/up:1", hosts)
	require.NoError(t, err)
	broken := errors.New("broken")
	for i := range 5 {
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString(strconv.Itoa(i)), Size: 1000}
		_, err = dst.Put(t.Context(), d, func(context.Context) (io.ReadCloser, error) {
			require.Eventually(t, bodyIsAwaited, time.Minute, time.Millisecond)
			return io.NopCloser(iotest.ErrReader(broken)), nil
		})
		require.ErrorIs(t, err, broken)
		require.Eventually(t, func() bool { return !bodyIsAwaited() }, time.Minute, time.Millisecond)
	}
}

// bodyIsAwaited says whether a request waits for the first byte of its body.
func bodyIsAwaited() bool {
	stacks := make([]byte, 1<<20)
	return bytes.Contains(stacks[:runtime.Stack(stacks, true)], []byte("io.(*pipe).read("))
}
