package verify

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/reference"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lazyerofs/lazyerofs/cmd/lazyerofs/internal/imagedata"
	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/format/all"
	"github.com/lazyerofs/lazyerofs/fs/remote"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, testenv.IgnoreRegistry()) }

// layout is a converted image on disk that a test spoils.
type layout struct {
	t   *testing.T
	dir string
}

// converted makes a layout of the tiny image.
func converted(t *testing.T, opts converter.Options) *layout {
	t.Helper()
	testenv.RequireRoot(t)
	recipe, err := testenv.Tiny()
	require.NoError(t, err)
	img, err := recipe.Build(t.Context(), func(s string) { t.Log(s) })
	require.NoError(t, err)
	l := &layout{t, t.TempDir()}
	src, err := converter.ParseSource("oci:"+img.Dir, nil)
	require.NoError(t, err)
	dst, err := converter.ParseTarget("oci:"+l.dir, nil)
	require.NoError(t, err)
	opts.WorkDir = t.TempDir()
	_, err = converter.Image(t.Context(), src, dst, opts)
	require.NoError(t, err)
	return l
}

func (l *layout) path(d ocispec.Descriptor) string {
	return filepath.Join(l.dir, "blobs/sha256", d.Digest.Encoded())
}

func (l *layout) read(d ocispec.Descriptor) []byte {
	b, err := os.ReadFile(l.path(d))
	require.NoError(l.t, err)
	return b
}

func (l *layout) write(d ocispec.Descriptor, b []byte) {
	require.NoError(l.t, os.WriteFile(l.path(d), b, 0o644))
}

func (l *layout) add(d ocispec.Descriptor, b []byte) ocispec.Descriptor {
	d.Digest, d.Size = digest.FromBytes(b), int64(len(b))
	l.write(d, b)
	return d
}

func (l *layout) addJSON(d ocispec.Descriptor, v any) ocispec.Descriptor {
	b, err := json.Marshal(v)
	require.NoError(l.t, err)
	return l.add(d, b)
}

// image returns the manifest of the layout and what it leads to.
func (l *layout) image() (d ocispec.Descriptor, m ocispec.Manifest, config ocispec.Image) {
	var idx ocispec.Index
	b, err := os.ReadFile(filepath.Join(l.dir, "index.json"))
	require.NoError(l.t, err)
	require.NoError(l.t, json.Unmarshal(b, &idx))
	require.NoError(l.t, json.Unmarshal(l.read(idx.Manifests[0]), &m))
	require.NoError(l.t, json.Unmarshal(l.read(m.Config), &config))
	return idx.Manifests[0], m, config
}

// replace gives the layout another manifest and config, with right digests.
func (l *layout) replace(m ocispec.Manifest, config ocispec.Image) {
	m.Config = l.addJSON(m.Config, config)
	d := l.addJSON(ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest}, m)
	b, err := json.Marshal(ocispec.Index{Manifests: []ocispec.Descriptor{d}})
	require.NoError(l.t, err)
	require.NoError(l.t, os.WriteFile(filepath.Join(l.dir, "index.json"), b, 0o644))
}

func (l *layout) verify() (*Report, error) {
	src, err := converter.ParseSource("oci:"+l.dir, nil)
	require.NoError(l.t, err)
	return Run(l.t.Context(), Config{Layers: &imagedata.Layers{Source: src, Formats: all.All(), WorkDir: l.t.TempDir()}})
}

func TestSoundImages(t *testing.T) {
	for name, opts := range map[string]converter.Options{
		"zstd": {}, "raw": {Layer: differ.Config{Form: differ.Raw}}, "side by side": {Output: converter.Index},
		"hash trees": {Layer: differ.Config{Verity: true}}, "raw with hash trees": {Layer: differ.Config{Form: differ.Raw, Verity: true}},
	} {
		t.Run(name, func(t *testing.T) {
			report, err := converted(t, opts).verify()
			require.NoError(t, err)
			require.Empty(t, report.Faults)
			require.True(t, report.Sound)
			kinds := map[string]int{}
			for _, l := range report.Layers {
				kinds[l.Kind]++
				require.Equal(t, l.Kind == "native", l.Chunks > 0 && l.Inodes > 0)
				require.Equal(t, opts.Layer.Verity, l.Verity != "")
			}
			require.Equal(t, 3, kinds["native"])
			if name == "side by side" {
				require.Equal(t, 3, kinds["tar"])
				require.Equal(t, 5, report.Documents)
			}
			var out bytes.Buffer
			require.NoError(t, report.Print(&out))
			require.Contains(t, out.String(), ": good\n")
		})
	}
}

// TestFaults spoils one thing each; what is said of it names the check and comes
// once.
func TestFaults(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(l *layout, m ocispec.Manifest, config ocispec.Image)
		want  []string // checks, in any order
	}{
		"manifest": {func(l *layout, _ ocispec.Manifest, _ ocispec.Image) {
			d, _, _ := l.image()
			l.write(d, append(bytes.TrimSuffix(l.read(d), []byte("}")), ' '))
		}, []string{"digest"}},
		"config gone": {func(l *layout, m ocispec.Manifest, _ ocispec.Image) {
			require.NoError(l.t, os.Remove(l.path(m.Config)))
		}, []string{"digest"}},
		"config longer": {func(l *layout, m ocispec.Manifest, _ ocispec.Image) {
			l.write(m.Config, append(l.read(m.Config), ' '))
		}, []string{"size"}},
		"layer gone": {func(l *layout, m ocispec.Manifest, _ ocispec.Image) {
			require.NoError(l.t, os.Remove(l.path(m.Layers[1])))
		}, []string{"digest"}},
		"layer longer": {func(l *layout, m ocispec.Manifest, _ ocispec.Image) {
			l.write(m.Layers[0], append(l.read(m.Layers[0]), 0))
		}, []string{"size"}},
		"data": {func(l *layout, m ocispec.Manifest, _ ocispec.Image) {
			b := l.read(m.Layers[0])
			b[len(b)/2] ^= 1
			l.write(m.Layers[0], b)
		}, []string{"chunk", "digest"}},
		"index": {func(l *layout, m ocispec.Manifest, _ ocispec.Image) {
			b := l.read(m.Layers[0])
			b[len(b)-1] ^= 1
			l.write(m.Layers[0], b)
		}, []string{"index", "digest"}},
		"diff id": {func(l *layout, m ocispec.Manifest, config ocispec.Image) {
			config.RootFS.DiffIDs[1] = digest.FromString("x")
			l.replace(m, config)
		}, []string{"diff-id"}},
		"too few diff ids": {func(l *layout, m ocispec.Manifest, config ocispec.Image) {
			config.RootFS.DiffIDs = config.RootFS.DiffIDs[:1]
			l.replace(m, config)
		}, []string{"diff-id"}},
		"labels": {func(l *layout, m ocispec.Manifest, config ocispec.Image) {
			m.Layers[0].Annotations[chunk.LabelBlobSize] = "1"
			m.Layers[0].Annotations[chunk.LabelPinned] = "1:99999999999"
			l.replace(m, config)
		}, []string{"annotation", "annotation"}},
		"uncompressed digest": {func(l *layout, m ocispec.Manifest, config ocispec.Image) {
			x := digest.FromString("x").String()
			m.Layers[0].Annotations[chunk.AnnotationUncompressedDigest], m.Layers[0].Annotations[chunk.LabelUncompressedDigest] = x, x
			l.replace(m, config)
		}, []string{"annotation"}},
		"not JSON": {func(l *layout, m ocispec.Manifest, _ ocispec.Image) {
			d := l.add(ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest}, []byte("{"))
			b, err := json.Marshal(ocispec.Index{Manifests: []ocispec.Descriptor{d}})
			require.NoError(l.t, err)
			require.NoError(l.t, os.WriteFile(filepath.Join(l.dir, "index.json"), b, 0o644))
		}, []string{"document"}},
		"layer digest": {func(l *layout, m ocispec.Manifest, config ocispec.Image) {
			m.Layers[0].Digest = "sha256:../x"
			l.replace(m, config)
		}, []string{"document"}},
		"no gzip": {func(l *layout, m ocispec.Manifest, config ocispec.Image) {
			m.Layers[0] = l.add(ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip}, []byte("\x1f\x8b\x08 this is no gzip stream at all"))
			l.replace(m, config)
		}, []string{"digest"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := converted(t, converter.Options{})
			_, m, config := l.image()
			c.spoil(l, m, config)
			report, err := l.verify()
			require.NoError(t, err)
			require.False(t, report.Sound)
			var got []string
			for _, f := range report.Faults {
				got = append(got, f.Check)
				require.NotContains(t, f.Text, "\n")
				require.NotEmpty(t, f.Object)
			}
			require.ElementsMatch(t, c.want, got, "%+v", report.Faults)
			var out bytes.Buffer
			require.NoError(t, report.Print(&out))
			require.Regexp(t, `: (1 fault|[02-9] faults)\n$`, out.String())
		})
	}
}

func TestOneIsSingular(t *testing.T) {
	report := Report{
		Image: "x", Digest: digest.FromString("x"), Documents: 1, Faults: make([]Fault, 1),
		Layers: []Layer{{Digest: digest.FromString("y"), Kind: "tar", Faults: 1}},
	}
	var out bytes.Buffer
	require.NoError(t, report.Print(&out))
	require.Contains(t, out.String(), "  1 fault\n")
	require.Contains(t, out.String(), ": 1 document, 1 layer, 0B: 1 fault\n")
	require.Equal(t, "2 faults", (&Report{Faults: make([]Fault, 2)}).Count())
}

// TestParserJudgesWhatDigestsAllow has metadata that no kernel should see, under
// digests that are all right.
func TestParserJudgesWhatDigestsAllow(t *testing.T) {
	l := converted(t, converter.Options{Layer: differ.Config{Form: differ.Raw}})
	_, m, config := l.image()
	b := l.read(m.Layers[0])
	section, err := chunk.ParseRange(m.Layers[0].Annotations[chunk.AnnotationIndexRange], m.Layers[0].Size)
	require.NoError(t, err)
	b[1024+80] ^= 0x10 // a feature bit of the superblock
	x, err := chunk.ParseIndex(b[section.Off:section.End()], section.Off)
	require.NoError(t, err)
	sum := sha256.Sum256(b[:x.At(0).Blob.End()])
	copy(b[section.Off+32+16:], sum[:]) // docs/formats/chunk-index.md
	notes := m.Layers[0].Annotations
	notes[chunk.AnnotationIndexDigest] = digest.FromBytes(b[section.Off:]).String()
	notes[chunk.LabelIndexDigest] = notes[chunk.AnnotationIndexDigest]
	m.Layers[0] = l.add(m.Layers[0], b)
	config.RootFS.DiffIDs[0] = m.Layers[0].Digest
	l.replace(m, config)
	report, err := l.verify()
	require.NoError(t, err)
	require.Len(t, report.Faults, 1, "%+v", report.Faults)
	require.Equal(t, "parser", report.Faults[0].Check)

	// The same of a layer that has no index.
	m.Layers[0].Annotations = nil
	l.replace(m, config)
	report, err = l.verify()
	require.NoError(t, err)
	require.Len(t, report.Faults, 1, "%+v", report.Faults)
	require.Equal(t, "parser", report.Faults[0].Check)
	require.NotEmpty(t, report.Layers[0].NotLazy)
}

// TestLayersWithoutAnIndexAreSound has layers as other tools write them.
func TestLayersWithoutAnIndexAreSound(t *testing.T) {
	for _, form := range []differ.Form{differ.Raw, differ.Zstd} {
		l := converted(t, converter.Options{Layer: differ.Config{Form: form}})
		_, m, config := l.image()
		for i := range m.Layers {
			m.Layers[i].Annotations = nil
		}
		l.replace(m, config)
		report, err := l.verify()
		require.NoError(t, err)
		require.Empty(t, report.Faults)
		require.NotEmpty(t, report.Layers[0].NotLazy)
		config.RootFS.DiffIDs[0] = digest.FromString("x")
		l.replace(m, config)
		report, err = l.verify()
		require.NoError(t, err)
		require.Len(t, report.Faults, 1)
		require.Equal(t, "diff-id", report.Faults[0].Check)
	}
}

// TestAcrossARegistry tells faults from a registry in trouble.
func TestAcrossARegistry(t *testing.T) {
	reg, err := testenv.StartRegistry(t.TempDir())
	require.NoError(t, err)
	defer func() { require.NoError(t, reg.Close()) }()
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	hosts := remote.NewHosts(remote.HostsConfig{CertsDir: t.TempDir()})
	defer hosts.Close()
	forDocker := func(host string) ([]docker.RegistryHost, error) {
		return hosts.RegistryHosts(reference.Spec{Locator: host + "/"})
	}
	at := reg.Addr() + "/x:1"
	from, err := converter.ParseSource("oci:"+converted(t, converter.Options{}).dir, nil)
	require.NoError(t, err)
	dst, err := converter.ParseTarget(at, forDocker)
	require.NoError(t, err)
	_, err = converter.Image(t.Context(), from, dst, converter.Options{Output: converter.Index, WorkDir: t.TempDir()})
	require.NoError(t, err)
	resolver := remote.NewResolver(remote.Config{})
	defer func() { require.NoError(t, resolver.Close()) }()
	verify := func(platforms ...ocispec.Platform) (*Report, error) {
		src, err := converter.ParseSource(at, forDocker)
		require.NoError(t, err)
		layers := &imagedata.Layers{Source: src, Hosts: hosts.RegistryHosts, Resolver: resolver, Formats: all.All()}
		var seen []converter.Phase
		report, err := Run(t.Context(), Config{Layers: layers, Parallel: 1, Platforms: platforms, Progress: func(e converter.Event) { seen = append(seen, e.Phase) }})
		require.NotContains(t, seen, converter.Push)
		return report, err
	}
	report, err := verify()
	require.NoError(t, err)
	require.Empty(t, report.Faults)
	_, err = verify(ocispec.Platform{OS: "linux", Architecture: "s390x"})
	require.ErrorIs(t, err, converter.ErrPlatform)

	blob := report.Layers[0].Digest.String()
	reg.Refuse(func(r *http.Request) int {
		if strings.HasSuffix(r.URL.Path, "/blobs/"+blob) {
			return http.StatusForbidden
		}
		return 0
	})
	_, err = verify()
	require.ErrorContains(t, err, "403 Forbidden", "a registry that refuses says nothing about the image")
	reg.Refuse(func(r *http.Request) int {
		if strings.HasSuffix(r.URL.Path, "/blobs/"+blob) {
			return http.StatusNotFound
		}
		return 0
	})
	report, err = verify()
	require.NoError(t, err)
	require.Len(t, report.Faults, 1)
	require.Contains(t, report.Faults[0].Text, "is not there")
}
