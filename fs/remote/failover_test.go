package remote_test

import (
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/containerd/stargz-snapshotter/fs/source"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/remote"
	"github.com/lazyerofs/lazyerofs/fs/remote/remotetest"
)

// mirrored puts a mirror with faults of its own in front of the rig's registry,
// through a hosts.toml as an administrator writes it.
func mirrored(t *testing.T) (*rig, *remotetest.Faults, *remotetest.Log) {
	g := newRig(t, nil)
	var faults remotetest.Faults
	var log remotetest.Log
	m := serve(t, log.Wrap(faults.Wrap(&g.registry)))
	g.mirrors(t, g.host(), m.URL, g.server.URL)
	return g, &faults, &log
}

func TestMirrorIsAskedFirst(t *testing.T) {
	g, _, log := mirrored(t)
	require.NoError(t, g.read(t, g.bare(t), 0, 100))
	require.Empty(t, g.log.Requests())
	reqs := log.Requests()
	require.Len(t, reqs, 1)
	require.Equal(t, "ns="+"127.0.0.1%3A"+g.host()[len("127.0.0.1:"):], reqs[0].Query)
}

func TestMirrorFailsInTheMiddle(t *testing.T) {
	for name, f := range map[string]remotetest.Fault{
		"404":        remotetest.Status(http.StatusNotFound),
		"503":        remotetest.Status(http.StatusServiceUnavailable),
		"401":        remotetest.Status(http.StatusUnauthorized),
		"abort":      remotetest.Abort,
		"truncate":   remotetest.Truncate(500),
		"not ranged": remotetest.IgnoreRange,
		"lies":       remotetest.ContentRange("bytes 0-1/2"),
	} {
		t.Run(name, func(t *testing.T) {
			g, faults, log := mirrored(t)
			b := g.bare(t)
			require.NoError(t, g.read(t, b, 0, 100))
			faults.Add(http.MethodGet, "/blobs/", remotetest.Always, f)
			require.NoError(t, g.read(t, b, 500_000, 1000), "the registry itself takes over without a retry")
			before := len(log.Requests())
			require.NoError(t, g.read(t, b, 600_000, 1000))
			require.Len(t, log.Requests(), before, "the mirror rests for a while")
		})
	}
}

func TestBothDown(t *testing.T) {
	g, faults, log := mirrored(t)
	faults.Add("", "/blobs/", remotetest.Always, remotetest.Status(http.StatusNotFound))
	g.faults.Add("", "/blobs/", remotetest.Always, remotetest.Status(http.StatusBadGateway))
	b := g.bare(t)
	err := g.read(t, b, 0, 10)
	require.ErrorIs(t, err, remote.ErrUnavailable, "one host may come back")
	require.NotErrorIs(t, err, remote.ErrGone)
	require.ErrorContains(t, err, "2 hosts")
	g.faults.Clear()
	g.faults.Add("", "/blobs/", remotetest.Always, remotetest.Status(http.StatusNotFound))
	require.ErrorIs(t, g.read(t, b, 0, 10), remote.ErrGone)
	// A host that rests is still asked when the others do not have it.
	faults.Clear()
	require.NoError(t, g.read(t, b, 0, 10))
	require.NotEmpty(t, log.Requests())
}

func TestCorruptMirrorIsLeft(t *testing.T) {
	g, faults, log := mirrored(t)
	faults.Add("", "/blobs/", remotetest.Always, remotetest.Flip(3))
	b := remote.Decorate(g.bare(t), "x", remote.Options{Retry: quick})
	require.NoError(t, g.readExtents(t, b, []chunk.Extent{{Off: 0, Len: 100}}))
	require.Len(t, log.Requests(), 1)
	require.Len(t, g.blobGets(), 1)
}

func TestSourcesAreFailOverToo(t *testing.T) {
	a, b := newRig(t, nil), newRig(t, nil)
	b.mirrors(t, a.host(), a.server.URL)
	first := b.source(t)
	first.Name, _ = reference.Parse(a.host() + "/team/app:1")
	blob, err := b.resolver.Resolve(t.Context(), []source.Source{first, b.source(t)}, ocispec.Descriptor{})
	require.NoError(t, err)
	require.NoError(t, b.read(t, blob, 0, 10))
	require.Len(t, a.blobGets(), 1)
	a.faults.Add("", "", remotetest.Always, remotetest.Abort)
	require.NoError(t, b.read(t, blob, 0, 10))
	require.Len(t, b.blobGets(), 1)
}

func TestResolveRefusesWhatItCannotRead(t *testing.T) {
	g := newRig(t, nil)
	ctx := t.Context()
	_, err := g.resolver.Resolve(ctx, nil, ocispec.Descriptor{})
	require.ErrorIs(t, err, remote.ErrNoSource)
	src := g.source(t)
	_, err = g.resolver.Resolve(ctx, []source.Source{src}, ocispec.Descriptor{Digest: "sha256:x", Size: 1})
	require.Error(t, err)
	_, err = g.resolver.Resolve(ctx, []source.Source{src}, ocispec.Descriptor{Digest: src.Target.Digest, Size: -1})
	require.Error(t, err)
	_, err = g.resolver.Resolve(ctx, []source.Source{src}, ocispec.Descriptor{Digest: ocispec.DescriptorEmptyJSON.Digest, Size: 1})
	require.ErrorIs(t, err, remote.ErrNoSource)
	src.Name.Locator = "reg.example/../x"
	_, err = g.resolver.Resolve(ctx, []source.Source{src}, ocispec.Descriptor{})
	require.Error(t, err)
}

func TestConnectionsAreKept(t *testing.T) {
	g := newRig(t, nil)
	var opened atomic.Int32
	s := httptest.NewUnstartedServer(&g.registry)
	s.Config.ConnState = func(_ net.Conn, st http.ConnState) {
		if st == http.StateNew {
			opened.Add(1)
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	g.mirrors(t, g.host(), s.URL)
	b := g.bare(t)
	for i := range int64(50) {
		require.NoError(t, g.read(t, b, i*20_000, 20_000))
	}
	require.Equal(t, int32(1), opened.Load())
	g.hosts.Close()
}
