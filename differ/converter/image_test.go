package converter_test

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

func registry(t testing.TB) *testenv.Registry {
	t.Helper()
	reg, err := testenv.StartRegistry(t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, reg.Close()) })
	return reg
}

var host = converter.Options{Platforms: []ocispec.Platform{amd64}}

// checkImage holds an image at a location against what a conversion must give.
func checkImage(t *testing.T, at string, d ocispec.Descriptor, form differ.Form) {
	t.Helper()
	require.Equal(t, ocispec.MediaTypeImageManifest, d.MediaType)
	var m ocispec.Manifest
	fetchJSON(t, at, d, &m)
	require.Equal(t, map[string]string{"org.example": "kept"}, m.Annotations)
	require.Equal(t, ocispec.MediaTypeImageConfig, m.Config.MediaType)
	var config struct {
		ocispec.Image
		Features []string `json:"os.features"`
		Moby     int      `json:"moby.thing"`
		Config   struct {
			Env     []string
			Unknown string
		} `json:"config"`
	}
	fetchJSON(t, at, m.Config, &config)
	require.Equal(t, []string{"erofs"}, config.Features)
	require.Equal(t, 7, config.Moby)
	require.Equal(t, "kept", config.Config.Unknown)
	require.Len(t, config.History, 2)
	require.Equal(t, "layers", config.RootFS.Type)
	require.Len(t, m.Layers, 3)
	for i, l := range m.Layers {
		blob := fetch(t, at, l)
		if form == differ.Raw {
			require.Equal(t, chunk.MediaTypeLayer, l.MediaType)
			require.Equal(t, l.Digest, config.RootFS.DiffIDs[i])
		} else {
			require.Equal(t, chunk.MediaTypeLayerZstd, l.MediaType)
			dec, err := zstd.NewReader(nil)
			require.NoError(t, err)
			img, err := dec.DecodeAll(blob, nil)
			dec.Close()
			require.NoError(t, err)
			require.Equal(t, digest.FromBytes(img), config.RootFS.DiffIDs[i])
		}
		require.NotEmpty(t, l.Annotations[chunk.AnnotationIndexRange])
		require.Equal(t, l.Annotations[chunk.AnnotationIndexRange], l.Annotations[chunk.LabelIndexRange])
	}
}

func TestEveryWay(t *testing.T) {
	reg := registry(t)
	l := newLayout(t)
	l.tag(map[string]ocispec.Descriptor{"one": l.image(amd64, "a")})
	// The plain image reaches the registry by a tool that is not ours to test.
	pushLayout(t, l, reg.Addr()+"/plain:1")
	file := filepath.Join(t.TempDir(), "plain.tar")
	saveOCI(t, l, file)
	docker := filepath.Join(t.TempDir(), "docker.tar")
	saveDocker(t, l, docker)

	out := t.TempDir()
	digests := map[digest.Digest]string{}
	for from, to := range map[string]string{
		"oci:" + l.dir + ":one":               reg.Addr() + "/lazy:1",
		reg.Addr() + "/plain:1":               "oci:" + out + "/a",
		"docker://" + reg.Addr() + "/plain:1": reg.Addr() + "/other/lazy:2",
		"oci:" + l.dir:                        "oci-archive:" + out + "/b.tar:x",
		"oci-archive:" + file:                 "oci:" + out + "/c:v1",
	} {
		t.Run(from, func(t *testing.T) {
			res, err := run(t, from, to, host)
			require.NoError(t, err)
			require.Equal(t, root(t, to).Digest, res.Digest)
			checkImage(t, to, root(t, to), differ.Zstd)
			digests[res.Digest] = from
		})
	}
	require.Len(t, digests, 1, "the same image gives the same digest, whatever the way: %v", digests)

	res, err := run(t, "docker-archive:"+docker+":docker.io/library/plain:1", "oci:"+out+"/d", host)
	require.NoError(t, err)
	require.Len(t, res.Images[0].Layers, 3)
	raw := host
	raw.Layer.Form = differ.Raw
	_, err = run(t, "oci:"+l.dir, reg.Addr()+"/raw:1", raw)
	require.NoError(t, err)
	checkImage(t, reg.Addr()+"/raw:1", root(t, reg.Addr()+"/raw:1"), differ.Raw)
}

func TestPlatforms(t *testing.T) {
	l := newLayout(t)
	l.tag(map[string]ocispec.Descriptor{"multi": l.index(), "single": l.image(arm64, "c")})
	from := "oci:" + l.dir + ":multi"
	to := "oci:" + t.TempDir()

	res, err := run(t, from, to, converter.Options{Platforms: []ocispec.Platform{arm64}})
	require.NoError(t, err)
	require.Equal(t, ocispec.MediaTypeImageManifest, res.MediaType, "one platform is a plain manifest")
	require.Equal(t, "linux/arm64/v8", res.Images[0].Platform)

	for _, opts := range []converter.Options{{AllPlatforms: true}, {Platforms: []ocispec.Platform{amd64, arm64, amd64}}} {
		res, err = run(t, from, to, opts)
		require.NoError(t, err)
		require.Equal(t, ocispec.MediaTypeImageIndex, res.MediaType)
		var idx ocispec.Index
		fetchJSON(t, to, root(t, to), &idx)
		require.Equal(t, map[string]string{"org.example.index": "kept"}, idx.Annotations)
		require.Len(t, idx.Manifests, 2)
		for i, p := range []ocispec.Platform{amd64, arm64} {
			require.Equal(t, &p, idx.Manifests[i].Platform, "without os.features, which default clients cannot select")
			d := idx.Manifests[i]
			d.Platform = nil
			checkImage(t, to, d, differ.Zstd)
		}
		if opts.AllPlatforms {
			require.Len(t, res.Skipped, 2)
		}
	}

	_, err = run(t, from, to, converter.Options{Platforms: []ocispec.Platform{{OS: "linux", Architecture: "s390x"}}})
	require.ErrorContains(t, err, "no image for linux/s390x; it has linux/amd64, linux/arm64")
	_, err = run(t, "oci:"+l.dir+":single", to, host)
	require.ErrorContains(t, err, "no image for linux/amd64")
	_, err = run(t, "oci:"+l.dir+":single", to, converter.Options{Platforms: []ocispec.Platform{arm64}})
	require.NoError(t, err)
}

func TestSharedLayersAreConvertedOnce(t *testing.T) {
	l := newLayout(t)
	l.tag(map[string]ocispec.Descriptor{"x": l.index()})
	var mu sync.Mutex
	done := map[digest.Digest]int{}
	_, err := run(t, "oci:"+l.dir, "oci:"+t.TempDir(), converter.Options{AllPlatforms: true, Progress: func(e converter.Event) {
		mu.Lock()
		defer mu.Unlock()
		require.LessOrEqual(t, e.Bytes, e.Total)
		if e.Phase == converter.Done {
			done[e.Layer]++
			require.NotNil(t, e.Result)
		}
	}})
	require.NoError(t, err)
	require.Len(t, done, 5, "two images of three layers with one in common")
	for _, n := range done {
		require.Equal(t, 1, n)
	}
}

func TestNativeLayersPassThrough(t *testing.T) {
	reg := registry(t)
	l := newLayout(t)
	l.tag(map[string]ocispec.Descriptor{"one": l.image(amd64, "a")})
	first, err := run(t, "oci:"+l.dir, reg.Addr()+"/lazy:1", host)
	require.NoError(t, err)

	reg.Reset()
	second, err := run(t, reg.Addr()+"/lazy:1", reg.Addr()+"/copy:1", host)
	require.NoError(t, err)
	require.Equal(t, first.Digest, second.Digest, "nothing changes")
	for _, lr := range second.Images[0].Layers {
		require.True(t, lr.Reused)
	}
	for _, r := range reg.Log() {
		for _, lr := range second.Images[0].Layers {
			if r.Method == http.MethodGet {
				require.NotEqual(t, lr.Digest.String(), r.Blob(), "mounted from the other repository, not downloaded")
			}
		}
	}
	checkImage(t, reg.Addr()+"/copy:1", root(t, reg.Addr()+"/copy:1"), differ.Zstd)

	out := "oci:" + t.TempDir()
	third, err := run(t, reg.Addr()+"/lazy:1", out, host)
	require.NoError(t, err)
	require.Equal(t, first.Digest, third.Digest)
	checkImage(t, out, root(t, out), differ.Zstd)

	again, err := run(t, "oci:"+l.dir, reg.Addr()+"/lazy:1", host)
	require.NoError(t, err)
	require.Equal(t, first.Digest, again.Digest)
	for _, lr := range again.Images[0].Layers {
		require.True(t, lr.Existed)
	}
}

func TestLayoutKeepsItsOtherImages(t *testing.T) {
	l := newLayout(t)
	l.tag(map[string]ocispec.Descriptor{"one": l.image(amd64, "a")})
	to := "oci:" + l.dir + ":lazy"
	for range 2 {
		_, err := run(t, "oci:"+l.dir+":one", to, host)
		require.NoError(t, err)
	}
	require.NotEqual(t, root(t, "oci:"+l.dir+":one").Digest, root(t, to).Digest)
	src, err := converter.ParseSource("oci:"+l.dir, hosts)
	require.NoError(t, err)
	_, err = src.Root(t.Context())
	require.ErrorContains(t, err, "holds 2 images; add :TAG")
	names, err := os.ReadDir(l.dir)
	require.NoError(t, err)
	for _, n := range names {
		require.Contains(t, []string{"blobs", "index.json", "oci-layout"}, n.Name())
	}
}

func TestCancelled(t *testing.T) {
	l := newLayout(t)
	l.tag(map[string]ocispec.Descriptor{"one": l.image(amd64, "a")})
	src, err := converter.ParseSource("oci:"+l.dir, hosts)
	require.NoError(t, err)
	dst, err := converter.ParseTarget("oci:"+t.TempDir(), hosts)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	opts := host
	opts.Progress = func(converter.Event) { cancel() }
	_, err = converter.Image(ctx, src, dst, opts)
	require.ErrorIs(t, err, context.Canceled)
}
