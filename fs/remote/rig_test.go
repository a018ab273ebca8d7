package remote_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/containerd/stargz-snapshotter/fs/source"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/remote"
	"github.com/lazyerofs/lazyerofs/fs/remote/remotetest"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, testenv.IgnoreRegistry())
}

// rig is one registry on loopback and a resolver that reaches it.
type rig struct {
	registry remotetest.Registry
	faults   remotetest.Faults
	log      remotetest.Log
	server   *httptest.Server
	hosts    *remote.HostSet
	resolver *remote.Resolver
	certs    string
	content  []byte
	digest   digest.Digest
	creds    func(string) (string, string, error)
}

// noise gives n reproducible bytes.
func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(b)
	return b
}

func newRig(t *testing.T, guard func(http.Handler) http.Handler) *rig {
	t.Helper()
	g := &rig{content: noise(1 << 20), certs: t.TempDir()}
	g.digest = g.registry.AddBlob(g.content)
	h := g.faults.Wrap(&g.registry)
	if guard != nil {
		h = guard(h)
	}
	g.server = serve(t, g.log.Wrap(h))
	g.mirrors(t, g.host(), g.server.URL)
	g.hosts = remote.NewHosts(remote.HostsConfig{CertsDir: g.certs, Credentials: func(h string) (string, string, error) {
		if g.creds == nil {
			return "", "", nil
		}
		return g.creds(h)
	}})
	t.Cleanup(g.hosts.Close)
	g.resolver = newResolver(t, remote.Timeouts{})
	return g
}

func newResolver(t *testing.T, limits remote.Timeouts) *remote.Resolver {
	r := remote.NewResolver(remote.Config{Timeouts: limits})
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	return r
}

// serve runs h on loopback until the test ends; connections that a fault
// holds open are cut.
func serve(t *testing.T, h http.Handler) *httptest.Server {
	s := httptest.NewServer(h)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

func (g *rig) host() string { return strings.TrimPrefix(g.server.URL, "http://") }

// mirrors writes a hosts.toml that names the urls in order, the last as server.
func (g *rig) mirrors(t *testing.T, registry string, urls ...string) {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "server = %q\n", urls[len(urls)-1])
	for _, u := range urls[:len(urls)-1] {
		fmt.Fprintf(&b, "[host.%q]\n  capabilities = [\"pull\"]\n", u)
	}
	dir := filepath.Join(g.certs, registry)
	require.NoError(t, os.MkdirAll(dir, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(b.String()), 0o600))
}

// mirrorTLS names s for a registry, with or without the authority that signed it.
func (g *rig) mirrorTLS(t *testing.T, registry string, s *httptest.Server, ca bool) {
	t.Helper()
	dir := filepath.Join(g.certs, registry)
	require.NoError(t, os.MkdirAll(dir, 0o755))
	toml := fmt.Sprintf("server = %q\n", s.URL)
	if ca {
		file := filepath.Join(dir, "ca.crt")
		block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
		require.NoError(t, os.WriteFile(file, block, 0o600))
		toml += fmt.Sprintf("ca = %q\n", file)
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(toml), 0o600))
}

func (g *rig) source(t *testing.T) source.Source {
	t.Helper()
	name, err := reference.Parse(g.host() + "/team/app:1")
	require.NoError(t, err)
	return source.Source{Hosts: g.hosts.RegistryHosts, Name: name, Target: ocispec.Descriptor{Digest: g.digest, Size: int64(len(g.content))}}
}

func (g *rig) bare(t *testing.T) remote.Blob {
	t.Helper()
	b, err := g.resolver.Resolve(t.Context(), []source.Source{g.source(t)}, ocispec.Descriptor{})
	require.NoError(t, err)
	return b
}

// quick retries without noticeable pauses.
var quick = remote.Policy{Budget: 2 * time.Second, First: time.Millisecond, Max: 5 * time.Millisecond}

// read reads a range and compares it.
func (g *rig) read(t *testing.T, b remote.Blob, off, n int64) error {
	t.Helper()
	p := make([]byte, n)
	_, err := b.ReadAt(t.Context(), p, off)
	if err == nil {
		require.True(t, bytes.Equal(g.content[off:off+n], p), "wrong bytes at %d+%d", off, n)
	}
	return err
}

// readExtents reads and compares extents, and returns the first error.
func (g *rig) readExtents(t *testing.T, b remote.Blob, es []chunk.Extent) error {
	t.Helper()
	var mu sync.Mutex
	seen := map[int]bool{}
	err := b.ReadExtents(t.Context(), es, func(i int, r io.Reader) error {
		p, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		if !bytes.Equal(g.content[es[i].Off:es[i].End()], p) {
			return &chunk.CorruptError{Origin: chunk.OriginRegistry, What: "extent", Reason: "digest differs"}
		}
		mu.Lock()
		defer mu.Unlock()
		seen[i] = true
		return nil
	})
	if err == nil {
		require.Len(t, seen, len(es))
	}
	return err
}

func (g *rig) blobGets() []remotetest.Request { return g.log.Matching(http.MethodGet, "/blobs/") }

// fakeBlob is content in memory that counts what reaches it.
type fakeBlob struct {
	content []byte
	mu      sync.Mutex
	asked   []chunk.Extent
	active  int
	peak    int
	fail    func(e chunk.Extent) error
	gate    chan struct{} // when set, reads wait for it
}

func (f *fakeBlob) Digest() digest.Digest { return digest.FromBytes(f.content) }
func (f *fakeBlob) Size() int64           { return int64(len(f.content)) }

func (f *fakeBlob) enter(ctx context.Context, e chunk.Extent) error {
	f.mu.Lock()
	f.asked = append(f.asked, e)
	f.active++
	f.peak = max(f.peak, f.active)
	f.mu.Unlock()
	defer func() { f.mu.Lock(); f.active--; f.mu.Unlock() }()
	if f.gate != nil {
		select {
		case <-f.gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if f.fail != nil {
		return f.fail(e)
	}
	return ctx.Err()
}

func (f *fakeBlob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > f.Size() {
		return 0, remote.ErrRange
	}
	if err := f.enter(ctx, chunk.Extent{Off: off, Len: int64(len(p))}); err != nil {
		return 0, err
	}
	return copy(p, f.content[off:]), nil
}

func (f *fakeBlob) ReadExtents(ctx context.Context, es []chunk.Extent, fn func(i int, r io.Reader) error) error {
	for i, e := range es {
		if err := f.enter(ctx, e); err != nil {
			return err
		}
		if err := fn(i, bytes.NewReader(f.content[e.Off:e.End()])); err != nil {
			return err
		}
	}
	return nil
}
