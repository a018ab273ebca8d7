package proofs

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// image is a converted image at a shop.
type image struct {
	ref      string // through the front
	manifest ocispec.Manifest
	ready    []string
}

// form is how the layers of a converted image are stored.
type form int

const (
	zstdForm form = iota
	raw
)

var forms = map[string]form{"raw": raw, "zstd": zstdForm}

// lines is the content of the file that layered adds.
func lines() string {
	var b strings.Builder
	for i := 1; i <= 900_000; i++ {
		fmt.Fprintln(&b, i)
	}
	return b.String()
}

// tiny is the small image; layered is the same with a layer of 6 MB on top.
func (s *shop) tiny() *testenv.Image {
	s.t.Helper()
	recipe, err := testenv.Tiny()
	require.NoError(s.t, err)
	return s.build(recipe)
}

func (s *shop) layered() *testenv.Image {
	s.t.Helper()
	recipe, err := testenv.Tiny()
	require.NoError(s.t, err)
	recipe.Name = "layered"
	recipe.Steps = append(recipe.Steps, testenv.Step{Name: "lines", Script: `seq 1 900000 >"$ROOT/lines"
echo before >"$ROOT/before"
echo within >"$ROOT/within"
`})
	return s.build(recipe)
}

// python is a real image of 265 MB.
func (s *shop) python() *testenv.Image {
	s.t.Helper()
	recipe, err := testenv.Python(s.t.Context())
	require.NoError(s.t, err)
	return s.build(recipe)
}

func (s *shop) build(recipe testenv.Recipe) *testenv.Image {
	s.t.Helper()
	img, err := recipe.Build(s.t.Context(), func(step string) { s.t.Log("building", step) })
	require.NoError(s.t, err)
	return img
}

// convert converts img as a user would. The program is no part of the test's own
// binary: compressing under the race detector takes minutes.
func (s *shop) convert(img *testenv.Image, tag string, form form, flags ...string) *image {
	s.t.Helper()
	name := "app:" + tag
	args := []string{"convert", "--quiet", "--plain-http", "--work-dir", s.t.TempDir(), "oci:" + img.Dir + ":latest", s.Addr() + "/" + name}
	if form == raw {
		args = append(args, "--raw")
	}
	out, err := exec.CommandContext(s.t.Context(), testenv.MustTool(s.t, "lazyerofs"), append(args, flags...)...).CombinedOutput()
	require.NoError(s.t, err, "%s", out)

	repo, done := s.repo()
	defer done()
	_, manifest, err := fetchManifest(s.t.Context(), repo, tag)
	require.NoError(s.t, err)
	lazy := &image{ref: s.addr() + "/" + name, ready: img.Ready}
	require.NoError(s.t, json.Unmarshal(manifest, &lazy.manifest))
	s.Reset()
	return lazy
}

func fetchManifest(ctx context.Context, repo *remote.Repository, tag string) (ocispec.Descriptor, []byte, error) {
	desc, err := repo.Resolve(ctx, tag)
	if err != nil {
		return desc, nil, err
	}
	raw, err := content.FetchAll(ctx, repo, desc)
	return desc, raw, err
}

// repo opens the repository of all images; done ends its connections.
func (s *shop) repo() (repo *remote.Repository, done func()) {
	s.t.Helper()
	repo, err := remote.NewRepository(s.Addr() + "/app")
	require.NoError(s.t, err)
	transport := &http.Transport{}
	repo.PlainHTTP = true
	repo.Client = &http.Client{Transport: transport}
	return repo, transport.CloseIdleConnections
}

// blob returns the bytes of a layer as they were pushed.
func (s *shop) blob(desc ocispec.Descriptor) []byte {
	s.t.Helper()
	repo, done := s.repo()
	defer done()
	b, err := content.FetchAll(s.t.Context(), repo, desc)
	require.NoError(s.t, err)
	s.Reset()
	return b
}

// alter pushes img again as tag with its manifest and config changed.
func (s *shop) alter(img *image, tag string, change func(m *ocispec.Manifest, c *ocispec.Image)) *image {
	s.t.Helper()
	ctx := s.t.Context()
	repo, done := s.repo()
	defer done()
	b, err := content.FetchAll(ctx, repo, img.manifest.Config)
	require.NoError(s.t, err)
	var config ocispec.Image
	require.NoError(s.t, json.Unmarshal(b, &config))
	m := clone(s, img.manifest)
	change(&m, &config)
	m.Config = s.push(repo, m.Config.MediaType, config)
	desc := s.push(repo, ocispec.MediaTypeImageManifest, m)
	require.NoError(s.t, repo.Tag(ctx, desc, tag))
	s.Reset()
	return &image{ref: s.addr() + "/app:" + tag, manifest: m, ready: img.ready}
}

func clone(s *shop, m ocispec.Manifest) (out ocispec.Manifest) {
	s.t.Helper()
	b, err := json.Marshal(m)
	require.NoError(s.t, err)
	require.NoError(s.t, json.Unmarshal(b, &out))
	return out
}

func (s *shop) push(repo *remote.Repository, mediaType string, v any) ocispec.Descriptor {
	s.t.Helper()
	b, err := json.Marshal(v)
	require.NoError(s.t, err)
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	ok, err := repo.Exists(s.t.Context(), desc)
	require.NoError(s.t, err)
	if !ok {
		require.NoError(s.t, repo.Push(s.t.Context(), desc, io.NopCloser(bytes.NewReader(b))))
	}
	return desc
}

// index parses the chunk index of a layer, and returns where it is in the blob.
func (s *shop) index(desc ocispec.Descriptor, blob []byte) (*chunk.Index, chunk.Extent) {
	s.t.Helper()
	at, err := chunk.ParseRange(desc.Annotations[chunk.AnnotationIndexRange], int64(len(blob)))
	require.NoError(s.t, err)
	section := blob[at.Off:at.End()]
	if strings.HasSuffix(desc.MediaType, "+zstd") {
		section, err = chunk.SkippablePayload(section)
		require.NoError(s.t, err)
	}
	x, err := chunk.ParseIndex(section, at.Off)
	require.NoError(s.t, err)
	return x, at
}
