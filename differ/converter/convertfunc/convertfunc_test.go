package convertfunc

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	ctd "github.com/containerd/containerd/v2/core/images/converter"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/platforms"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memoryLabels keeps the labels of a store in memory.
type memoryLabels struct {
	mu  sync.Mutex
	all map[digest.Digest]map[string]string
}

func (m *memoryLabels) Get(d digest.Digest) (map[string]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.all[d]), nil
}

func (m *memoryLabels) Set(d digest.Digest, l map[string]string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all[d] = maps.Clone(l)
	return nil
}

func (m *memoryLabels) Update(d digest.Digest, l map[string]string) (map[string]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.all[d] == nil {
		m.all[d] = map[string]string{}
	}
	maps.Copy(m.all[d], l)
	return maps.Clone(m.all[d]), nil
}

// store is a real content store with an image in it.
type store struct {
	content.Store
	t *testing.T
}

func newStore(t *testing.T) *store {
	t.Helper()
	cs, err := local.NewLabeledStore(t.TempDir(), &memoryLabels{all: map[digest.Digest]map[string]string{}})
	require.NoError(t, err)
	return &store{cs, t}
}

func (s *store) add(mediaType string, b []byte) ocispec.Descriptor {
	s.t.Helper()
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	require.NoError(s.t, content.WriteBlob(s.t.Context(), s, d.Digest.String(), bytes.NewReader(b), d))
	return d
}

func (s *store) addJSON(mediaType string, v any) ocispec.Descriptor {
	b, err := json.Marshal(v)
	require.NoError(s.t, err)
	return s.add(mediaType, b)
}

func (s *store) read(d ocispec.Descriptor, v any) map[string]string {
	s.t.Helper()
	b, err := content.ReadBlob(s.t.Context(), s, d)
	require.NoError(s.t, err)
	require.NoError(s.t, json.Unmarshal(b, v))
	info, err := s.Info(s.t.Context(), d.Digest)
	require.NoError(s.t, err)
	return info.Labels
}

func tarOf(t *testing.T, names ...string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, n := range names {
		hdr := &tar.Header{Name: n, Mode: 0o640, Uid: 7}
		if strings.HasSuffix(n, "/") {
			hdr.Mode = 0o700
		}
		require.NoError(t, w.WriteHeader(hdr))
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

// image adds an image whose second layer only implies a directory of the first.
func (s *store) image() ocispec.Descriptor {
	p := platforms.DefaultSpec()
	one, two := tarOf(s.t, "dir/", "dir/a"), tarOf(s.t, "dir/b")
	config := s.addJSON(ocispec.MediaTypeImageConfig, ocispec.Image{
		Platform: p, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(one), digest.FromBytes(two)}},
	})
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{
		s.add(ocispec.MediaTypeImageLayer, one), s.add(ocispec.MediaTypeImageLayer, two),
	}}
	m.SchemaVersion = 2
	m.Layers[0].Annotations = map[string]string{"org.example": "kept"}
	return s.addJSON(ocispec.MediaTypeImageManifest, m)
}

func TestImage(t *testing.T) {
	for _, form := range []differ.Form{differ.Zstd, differ.Raw} {
		s := newStore(t)
		old := s.image()
		f := Image(converter.Options{Layer: differ.Config{Form: form}, WorkDir: t.TempDir()})
		d, err := f(t.Context(), s, old)
		require.NoError(t, err)
		require.NotEqual(t, old.Digest, d.Digest)
		var m ocispec.Manifest
		gc := s.read(*d, &m)
		require.Equal(t, m.Config.Digest.String(), gc["containerd.io/gc.ref.content.config"])
		var config ocispec.Image
		s.read(m.Config, &config)
		require.Equal(t, []string{"erofs"}, config.OSFeatures)
		for i, l := range m.Layers {
			require.Equal(t, l.Digest.String(), gc["containerd.io/gc.ref.content.l."+string(rune('0'+i))])
			id, err := images.GetDiffID(t.Context(), s, l)
			require.NoError(t, err)
			require.Equal(t, config.RootFS.DiffIDs[i], id)
		}
		require.Equal(t, "kept", m.Layers[0].Annotations["org.example"])

		again, err := f(t.Context(), s, old)
		require.NoError(t, err)
		require.Equal(t, d, again)
		same, err := f(t.Context(), s, *d)
		require.NoError(t, err)
		require.Nil(t, same, "it is converted already")

		// BuildKit drops what a manifest says of the layers of its base.
		for i := range m.Layers {
			m.Layers[i].Annotations = map[string]string{"org.example": "kept"}
		}
		anew, err := f(t.Context(), s, s.addJSON(ocispec.MediaTypeImageManifest, m))
		require.NoError(t, err)
		s.read(*anew, &m)
		for _, l := range m.Layers {
			require.NotEmpty(t, l.Annotations[chunk.AnnotationIndexRange])
		}
	}
}

func TestImageOfAnIndex(t *testing.T) {
	s := newStore(t)
	old := s.image()
	p := platforms.DefaultSpec()
	old.Platform = &p
	absent := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("absent"), Size: 1, Platform: &ocispec.Platform{OS: "linux", Architecture: "s390x"}}
	top := s.addJSON(ocispec.MediaTypeImageIndex, ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{absent, old}})
	d, err := Image(converter.Options{Output: converter.Index, WorkDir: t.TempDir()})(t.Context(), s, top)
	require.NoError(t, err, "only what the platform needs must be there")
	var idx ocispec.Index
	gc := s.read(*d, &idx)
	require.Len(t, idx.Manifests, 2)
	require.Equal(t, old.Digest, idx.Manifests[0].Digest)
	require.Equal(t, idx.Manifests[1].Digest.String(), gc["containerd.io/gc.ref.content.m.1"])

	_, err = Image(converter.Options{AllPlatforms: true, WorkDir: t.TempDir()})(t.Context(), s, top)
	require.ErrorContains(t, err, absent.Digest.String())
	_, err = Image(converter.Options{Platforms: []ocispec.Platform{{OS: "linux", Architecture: "riscv64"}}})(t.Context(), s, top)
	require.ErrorIs(t, err, converter.ErrPlatform)
}

// TestLayer drives containerd's own converter of images with ours of layers.
func TestLayer(t *testing.T) {
	s := newStore(t)
	work := t.TempDir()
	f := ctd.DefaultIndexConvertFunc(Layer(differ.Config{}, work), true, platforms.All)
	d, err := f(t.Context(), s, s.image())
	require.NoError(t, err)
	var m ocispec.Manifest
	s.read(*d, &m)
	var config ocispec.Image
	s.read(m.Config, &config)
	for i, l := range m.Layers {
		require.Equal(t, chunk.MediaTypeLayerZstd, l.MediaType)
		require.Equal(t, l.Annotations[chunk.AnnotationUncompressedDigest], config.RootFS.DiffIDs[i].String())
		info, err := s.Info(t.Context(), l.Digest)
		require.NoError(t, err)
		require.Equal(t, config.RootFS.DiffIDs[i].String(), info.Labels[labels.LabelUncompressed])
	}
	require.Equal(t, "kept", m.Layers[0].Annotations["org.example"])
	same, err := f(t.Context(), s, *d)
	require.NoError(t, err)
	require.Nil(t, same)
	left, err := os.ReadDir(work)
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestLayerRefuses(t *testing.T) {
	s := newStore(t)
	convert := func(d ocispec.Descriptor) (*ocispec.Descriptor, error) {
		return Layer(differ.Config{}, t.TempDir())(t.Context(), s, d)
	}
	for _, mediaType := range []string{ocispec.MediaTypeImageConfig, "application/vnd.in-toto+json", chunk.MediaTypeLayer} {
		d, err := convert(ocispec.Descriptor{MediaType: mediaType})
		require.NoError(t, err)
		require.Nil(t, d)
	}
	_, err := convert(s.add(ocispec.MediaTypeImageLayer, []byte(strings.Repeat("no tar ", 200))))
	require.Error(t, err)
	_, err = convert(ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString("absent")})
	require.ErrorContains(t, err, digest.FromString("absent").String())
	_, err = Layer(differ.Config{}, "/nonexistent")(t.Context(), s, s.add(ocispec.MediaTypeImageLayer, tarOf(t, "x")))
	require.ErrorIs(t, err, os.ErrNotExist)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Layer(differ.Config{}, t.TempDir())(ctx, s, s.add(ocispec.MediaTypeImageLayer, tarOf(t, "y")))
	require.True(t, errors.Is(err, context.Canceled), "%v", err)
}

// behindSocket is a store whose every read is a call, as containerd's is to a client.
type behindSocket struct {
	content.Store
	calls atomic.Int64
}

func (s *behindSocket) ReaderAt(ctx context.Context, d ocispec.Descriptor) (content.ReaderAt, error) {
	ra, err := s.Store.ReaderAt(ctx, d)
	return &callingReader{ra, s}, err
}

type callingReader struct {
	content.ReaderAt
	s *behindSocket
}

func (r *callingReader) ReadAt(p []byte, off int64) (int, error) {
	r.s.calls.Add(1)
	return r.ReaderAt.ReadAt(p, off)
}

// TestReadsAreLong: a plain tar could be read at random, which takes a call for every
// small file.
func TestReadsAreLong(t *testing.T) {
	s := newStore(t)
	var names []string
	for i := range 8000 {
		names = append(names, strconv.Itoa(i))
	}
	layer := s.add(ocispec.MediaTypeImageLayer, tarOf(t, names...))
	config := s.addJSON(ocispec.MediaTypeImageConfig, ocispec.Image{
		Platform: platforms.DefaultSpec(), RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.Digest}},
	})
	root := s.addJSON(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{layer},
	})
	far := &behindSocket{Store: s}
	d, err := Image(converter.Options{})(t.Context(), far, root)
	require.NoError(t, err)
	require.NotNil(t, d)
	require.Less(t, far.calls.Load(), layer.Size/(32<<10)+10)
}
