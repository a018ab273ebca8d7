package remote_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/containerd/stargz-snapshotter/fs/source"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/remote"
	"github.com/lazyerofs/lazyerofs/fs/remote/remotetest"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// TestRealRegistry reads through the distribution project's registry behind a
// token server, found through certs.d, with the content pushed by containerd.
func TestRealRegistry(t *testing.T) {
	reg, err := testenv.StartRegistry(t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, reg.Close()) })
	tokens := &remotetest.Tokens{User: "u", Password: "p"}
	var log remotetest.Log
	server := serve(t, log.Wrap(tokens.Wrap(reg)))

	g := &rig{server: server, certs: t.TempDir(), content: noise(300_000)}
	g.digest = digest.FromBytes(g.content)
	g.mirrors(t, g.host(), server.URL)
	g.hosts = remote.NewHosts(remote.HostsConfig{CertsDir: g.certs, Credentials: func(string) (string, string, error) { return "u", "p", nil }})
	t.Cleanup(g.hosts.Close)
	g.resolver = newResolver(t, remote.Timeouts{})

	push(t, g)
	log.Reset()
	src := g.source(t)
	src.Target.Size = 0
	b, err := remote.Open(t.Context(), g.resolver, []source.Source{src}, ocispec.Descriptor{}, remote.Options{Retry: quick})
	require.NoError(t, err)
	require.Equal(t, int64(len(g.content)), b.Size(), "by one HEAD")
	remotetest.Laws(t, b, g.content)
	tokens.Expire()
	remotetest.Laws(t, b, g.content)
	for _, r := range log.Matching(http.MethodGet, "/blobs/") {
		require.NotEmpty(t, r.Range)
		require.NotEqual(t, http.StatusOK, r.Status, "never the whole blob: %+v", r)
	}

	src.Target.Digest = digest.FromString("not there")
	_, err = g.resolver.Resolve(t.Context(), []source.Source{src}, ocispec.Descriptor{})
	require.ErrorIs(t, err, remote.ErrGone)
}

func push(t *testing.T, g *rig) {
	t.Helper()
	src := g.source(t)
	hosts := func(string) ([]docker.RegistryHost, error) { return g.hosts.RegistryHosts(src.Name) }
	p, err := docker.NewResolver(docker.ResolverOptions{Hosts: hosts}).Pusher(t.Context(), src.Name.String())
	require.NoError(t, err)
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: g.digest, Size: int64(len(g.content))}
	w, err := p.Push(t.Context(), desc)
	require.NoError(t, err)
	_, err = w.Write(g.content)
	require.NoError(t, err)
	require.NoError(t, w.Commit(t.Context(), desc.Size, desc.Digest))
	require.NoError(t, w.Close())
}

// TestTLS reads over HTTP/2 with the certificate authority of hosts.toml, and
// refuses, without retries, what that authority did not sign.
func TestTLS(t *testing.T) {
	g := newRig(t, nil)
	var protos []string
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		protos = append(protos, r.Proto)
		g.registry.ServeHTTP(w, r)
	}))
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	g.mirrorTLS(t, "tls.example", s, true)
	g.mirrorTLS(t, "other.example", s, false)

	src := g.source(t)
	src.Name, _ = reference.Parse("tls.example/team/app:1")
	b, err := g.resolver.Resolve(t.Context(), []source.Source{src}, ocispec.Descriptor{})
	require.NoError(t, err)
	require.NoError(t, g.read(t, b, 10, 1000))
	require.Equal(t, []string{"HTTP/2.0"}, protos)

	src.Name, _ = reference.Parse("other.example/team/app:1")
	b, err = g.resolver.Resolve(t.Context(), []source.Source{src}, ocispec.Descriptor{})
	require.NoError(t, err)
	err = g.read(t, remote.Retry(b, quick), 10, 1000)
	require.ErrorContains(t, err, "certificate")
	require.NotErrorIs(t, err, remote.ErrUnavailable)
	g.hosts.Close()
}

// TestLocalhostWithoutConfiguration speaks plain HTTP as containerd does: TLS
// is tried first, once.
func TestLocalhostWithoutConfiguration(t *testing.T) {
	g := newRig(t, nil)
	g.hosts = remote.NewHosts(remote.HostsConfig{CertsDir: t.TempDir() + "/absent"})
	t.Cleanup(g.hosts.Close)
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	require.NoError(t, g.read(t, g.bare(t), 10, 1000))
	plain := remote.NewHosts(remote.HostsConfig{CertsDir: t.TempDir(), PlainHTTP: true})
	hosts, err := plain.RegistryHosts(g.source(t).Name)
	require.NoError(t, err)
	require.Equal(t, "http", hosts[0].Scheme)
	hub, err := reference.Parse("docker.io/library/busybox:latest")
	require.NoError(t, err)
	hosts, err = remote.Hosts(remote.HostsConfig{CertsDir: t.TempDir()})(hub)
	require.NoError(t, err)
	require.Equal(t, "registry-1.docker.io", hosts[0].Host)
	require.Equal(t, "https", hosts[0].Scheme)
}
