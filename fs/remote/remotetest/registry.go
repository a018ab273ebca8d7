package remotetest

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Registry is a read-only registry with content in memory: what a client that
// reads by digest sees of the distribution spec. The zero value is ready.
type Registry struct {
	mu        sync.Mutex
	content   map[digest.Digest][]byte
	mediaType map[digest.Digest]string
	storage   *Storage
}

// AddBlob stores a blob.
func (g *Registry) AddBlob(b []byte) digest.Digest { return g.add(b, "application/octet-stream") }

// AddManifest stores a manifest with a config and the given layers.
func (g *Registry) AddManifest(layers ...ocispec.Descriptor) digest.Digest {
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    ocispec.DescriptorEmptyJSON,
		Layers:    layers,
	}
	raw, err := json.Marshal(m)
	if err != nil {
		panic(err) // plain structs always marshal
	}
	return g.add(raw, ocispec.MediaTypeImageManifest)
}

func (g *Registry) add(b []byte, mediaType string) digest.Digest {
	d := digest.FromBytes(b)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.content == nil {
		g.content, g.mediaType = map[digest.Digest][]byte{}, map[digest.Digest]string{}
	}
	g.content[d], g.mediaType[d] = b, mediaType
	return d
}

// Get returns stored content, nil when there is none.
func (g *Registry) Get(d digest.Digest) []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.content[d]
}

// RedirectTo makes blob requests answer with a redirect to s.
func (g *Registry) RedirectTo(s *Storage) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.storage = s
}

// ServeHTTP serves /v2/, /v2/NAME/blobs/DIGEST and /v2/NAME/manifests/DIGEST.
func (g *Registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/v2/" {
		w.WriteHeader(http.StatusOK)
		return
	}
	i := max(strings.LastIndex(r.URL.Path, "/blobs/"), strings.LastIndex(r.URL.Path, "/manifests/"))
	d := digest.Digest(r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:])
	b := g.Get(d)
	if i < 0 || b == nil || (r.Method != http.MethodGet && r.Method != http.MethodHead) {
		http.Error(w, `{"errors":[{"code":"BLOB_UNKNOWN"}]}`, http.StatusNotFound)
		return
	}
	g.mu.Lock()
	storage, mediaType := g.storage, g.mediaType[d]
	g.mu.Unlock()
	if storage != nil && strings.Contains(r.URL.Path, "/blobs/") {
		http.Redirect(w, r, storage.sign(d), http.StatusTemporaryRedirect)
		return
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Docker-Content-Digest", d.String())
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

// Storage is the host that a registry redirects to, as object stores are: its
// URLs carry a signature and expire, and it refuses requests that carry
// credentials for another host.
type Storage struct {
	// Registry has the content.
	Registry *Registry
	// Base is the storage's own URL, for example "http://127.0.0.1:1234".
	Base string

	mu    sync.Mutex
	epoch int
}

// Expire makes all URLs given so far answer 403.
func (s *Storage) Expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.epoch++
}

func (s *Storage) sign(d digest.Digest) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := url.Values{"X-Signature": {"secret" + strconv.Itoa(s.epoch)}}
	return s.Base + "/data/" + d.String() + "?" + q.Encode()
}

// ServeHTTP serves signed URLs.
func (s *Storage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	want := "secret" + strconv.Itoa(s.epoch)
	s.mu.Unlock()
	b := s.Registry.Get(digest.Digest(strings.TrimPrefix(r.URL.Path, "/data/")))
	switch {
	case r.Header.Get("Authorization") != "":
		http.Error(w, "only one auth mechanism allowed", http.StatusBadRequest)
	case r.URL.Query().Get("X-Signature") != want:
		http.Error(w, "request has expired", http.StatusForbidden)
	case b == nil:
		http.NotFound(w, r)
	default:
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	}
}
