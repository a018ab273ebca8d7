package image

import (
	"bytes"
	"encoding/json"
	"net/http"
	"runtime"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/platforms"
	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// pusher puts documents into a real registry.
type pusher struct {
	t     *testing.T
	repo  string
	hosts docker.RegistryHosts
}

func newPusher(t *testing.T) *pusher {
	reg, err := testenv.StartRegistry(t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, reg.Close()) })
	hosts := docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost))
	return &pusher{t: t, repo: reg.Addr() + "/test", hosts: hosts}
}

func (p *pusher) push(ref, mediaType string, doc any) ocispec.Descriptor {
	b, err := json.Marshal(doc)
	require.NoError(p.t, err)
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	var rp remotes.Pusher
	rp, err = docker.NewResolver(docker.ResolverOptions{Hosts: p.hosts}).Pusher(p.t.Context(), ref)
	require.NoError(p.t, err)
	w, err := rp.Push(p.t.Context(), desc)
	require.NoError(p.t, err)
	_, err = bytes.NewReader(b).WriteTo(w)
	require.NoError(p.t, err)
	require.NoError(p.t, w.Commit(p.t.Context(), desc.Size, desc.Digest))
	require.NoError(p.t, w.Close())
	return desc
}

// image pushes a one-layer image, distinguishable by its author.
func (p *pusher) image(tag, author string) ocispec.Descriptor {
	ref := p.repo + ":" + tag
	layer := p.push(ref+"@"+digest.FromString("x").String(), ocispec.MediaTypeImageLayer, author)
	cfg := ocispec.Image{Author: author}
	cfg.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromString(author)}}
	return p.push(ref, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    p.push(ref+"@"+digest.FromString("x").String(), ocispec.MediaTypeImageConfig, cfg),
		Layers:    []ocispec.Descriptor{layer},
	})
}

func TestResolveReadsManifestAndConfig(t *testing.T) {
	p := newPusher(t)
	desc := p.image("one", "me")
	img, err := Resolve(t.Context(), p.repo+":one", p.hosts, nil)
	require.NoError(t, err)
	require.Equal(t, desc.Digest, img.Desc.Digest)
	require.Equal(t, "me", img.Config.Author)
	require.Equal(t, []string{digest.FromString("me").String()}, img.ChainIDs())
}

func TestChainIDsAreTheImageSpecs(t *testing.T) {
	ids := []digest.Digest{digest.FromString("1"), digest.FromString("2"), digest.FromString("3")}
	img := &Image{Config: ocispec.Image{RootFS: ocispec.RootFS{DiffIDs: ids}}}
	chain := img.ChainIDs()
	require.Len(t, chain, 3)
	require.Equal(t, identity.ChainID(ids).String(), chain[2])
}

func TestResolveChoosesThePlatformAndPrefersEROFS(t *testing.T) {
	p := newPusher(t)
	host := platforms.DefaultSpec()
	entry := func(author string, pl ocispec.Platform) ocispec.Descriptor {
		d := p.image(author, author)
		d.Platform = &pl
		return d
	}
	lazy := host
	lazy.OSFeatures = []string{"erofs"}
	idx := ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{
			entry("other", ocispec.Platform{OS: "linux", Architecture: "s390x"}),
			entry("tar", host),
			entry("lazy", lazy),
		},
	}
	p.push(p.repo+":all", ocispec.MediaTypeImageIndex, idx)
	img, err := Resolve(t.Context(), p.repo+":all", p.hosts, nil)
	require.NoError(t, err)
	require.Equal(t, "lazy", img.Config.Author)

	idx.Manifests = idx.Manifests[:2]
	p.push(p.repo+":two", ocispec.MediaTypeImageIndex, idx)
	img, err = Resolve(t.Context(), p.repo+":two", p.hosts, nil)
	require.NoError(t, err)
	require.Equal(t, "tar", img.Config.Author)

	_, err = Resolve(t.Context(), p.repo+":two", p.hosts, &ocispec.Platform{OS: "linux", Architecture: "mips64le"})
	require.ErrorIs(t, err, converter.ErrPlatform)
	require.ErrorContains(t, err, "no image for the platform linux/mips64le")

	// A machine runs images of older ones; who names a platform wants no other.
	old, ok := map[string]ocispec.Platform{
		"amd64": {OS: "linux", Architecture: "386"}, "arm64": {OS: "linux", Architecture: "arm", Variant: "v7"},
	}[runtime.GOARCH]
	require.True(t, ok, "no architecture is known that %s runs, too", runtime.GOARCH)
	idx.Manifests = []ocispec.Descriptor{entry("old", old)}
	p.push(p.repo+":old", ocispec.MediaTypeImageIndex, idx)
	img, err = Resolve(t.Context(), p.repo+":old", p.hosts, nil)
	require.NoError(t, err)
	require.Equal(t, "old", img.Config.Author)
	_, err = Resolve(t.Context(), p.repo+":old", p.hosts, &host)
	require.ErrorIs(t, err, converter.ErrPlatform)
	_, err = Resolve(t.Context(), p.repo+":old", p.hosts, &old)
	require.NoError(t, err)
}

func TestResolveRefuses(t *testing.T) {
	p := newPusher(t)
	_, err := Resolve(t.Context(), "UPPER CASE", p.hosts, nil)
	require.ErrorIs(t, err, converter.ErrLocation)
	require.ErrorContains(t, err, `"UPPER CASE": `)
	_, err = Resolve(t.Context(), p.repo+":none", p.hosts, nil)
	require.ErrorContains(t, err, "finding image")

	ref := p.repo + ":empty"
	cfg := p.push(ref+"@"+digest.FromString("x").String(), ocispec.MediaTypeImageConfig, ocispec.Image{})
	p.push(ref, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: cfg, Layers: []ocispec.Descriptor{},
	})
	_, err = Resolve(t.Context(), ref, p.hosts, nil)
	require.ErrorContains(t, err, "has 0 layers")
}

func TestResolveRefusesBytesThatAreNotTheDigests(t *testing.T) {
	p := newPusher(t)
	desc := p.image("one", "me")
	liar := func(host string) ([]docker.RegistryHost, error) {
		hosts, err := p.hosts(host)
		for i := range hosts {
			hosts[i].Client = &http.Client{Transport: corrupting{}}
		}
		return hosts, err
	}
	_, err := Resolve(t.Context(), p.repo+"@"+desc.Digest.String(), liar, nil)
	require.Error(t, err)
	require.Contains(t, err.Error(), "digest")
}

// corrupting flips the first byte of every body.
type corrupting struct{}

func (corrupting) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil || r.Method == http.MethodHead {
		return resp, err
	}
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		return nil, err
	}
	if err := resp.Body.Close(); err != nil {
		return nil, err
	}
	if b.Len() > 0 {
		b.Bytes()[0] ^= 1
	}
	resp.Body = readCloser{&b}
	return resp, nil
}

type readCloser struct{ *bytes.Buffer }

func (readCloser) Close() error { return nil }
