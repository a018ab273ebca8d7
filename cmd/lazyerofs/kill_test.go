package main

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// kills is how often the converter dies; its time from start to end is cut into
// as many parts at random.
const kills = 8

// tinyImage is a real image, small enough to build here.
func tinyImage(t *testing.T) *testenv.Image {
	t.Helper()
	recipe, err := testenv.Tiny()
	require.NoError(t, err)
	img, err := recipe.Build(t.Context(), func(s string) { t.Log(s) })
	require.NoError(t, err)
	return img
}

// program starts this binary as lazyerofs.
func program(t *testing.T, args ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	link := filepath.Join(t.TempDir(), "lazyerofs") // the name decides what it does
	require.NoError(t, os.Symlink(self, link))
	cmd := exec.Command(link, args...)
	out := &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = out, out
	return cmd, out
}

// TestKilledConversions kills the converter at random moments and looks after
// each at what is at the target: nothing under the name, or everything. A layer
// that was finished once is never converted again.
func TestKilledConversions(t *testing.T) {
	testenv.RequireRoot(t)
	reg, err := testenv.StartRegistry(t.TempDir())
	require.NoError(t, err)
	defer func() { require.NoError(t, reg.Close()) }()
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	from := "oci:" + noisyLayout(t)
	for name, to := range map[string]string{
		"registry": reg.Addr() + "/lazy:1", "layout": "oci:" + filepath.Join(t.TempDir(), "layout"), "archive": "oci-archive:" + filepath.Join(t.TempDir(), "a.tar"),
	} {
		t.Run(name, func(t *testing.T) {
			work := t.TempDir()
			args := []string{"convert", "--json", "-q", "--output", "index", "--platform", "linux/amd64", "--jobs", "1", "--work-dir", work, from, to}
			whole := timeOf(t, from)
			for range kills {
				killAtRandom(t, whole, args)
				requireNothingOrAll(t, to)
			}
			finished := len(glob(t, work, "*.json"))
			if name == "archive" {
				// A run that came to its end gave the blobs away, and a new archive has none.
				finished = 0
				for _, blob := range glob(t, work, "*.blob") {
					if _, err := os.Stat(strings.TrimSuffix(blob, "blob") + "json"); err == nil {
						finished++ // the record is what comes last
					}
				}
			}
			cmd, out := program(t, args...)
			require.NoError(t, cmd.Run(), out.String())
			var res converter.Result
			require.NoError(t, json.Unmarshal(out.Bytes(), &res), out.String())
			resumed := 0
			for _, l := range res.Images[0].Layers {
				if l.Resumed {
					resumed++
				}
			}
			require.Equal(t, finished, resumed, "every finished layer is used, and nothing else is called so")
			t.Logf("%d of %d layers were finished before the last run", resumed, len(res.Images[0].Layers))
			require.True(t, requireNothingOrAll(t, to))
			left, err := os.ReadDir(work)
			require.NoError(t, err)
			require.Len(t, left, 1, "killed conversions leave finished layers only: %v", left)
			require.Empty(t, glob(t, work, "*.blob"))
		})
	}
}

// glob lists what the work directory keeps.
func glob(t *testing.T, work, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(work, "layers", pattern))
	require.NoError(t, err)
	return names
}

// timeOf measures a conversion that nobody disturbs.
func timeOf(t *testing.T, from string) time.Duration {
	t.Helper()
	start := time.Now()
	cmd, out := program(t, "convert", "-q", "--output", "index", "--platform", "linux/amd64", "--jobs", "1", "--work-dir", t.TempDir(), from, "oci:"+t.TempDir())
	require.NoError(t, cmd.Run(), out.String())
	return time.Since(start)
}

func killAtRandom(t *testing.T, within time.Duration, args []string) {
	t.Helper()
	n, err := rand.Int(rand.Reader, big.NewInt(int64(within)))
	require.NoError(t, err)
	cmd, _ := program(t, args...)
	require.NoError(t, cmd.Start())
	timer := time.AfterFunc(time.Duration(n.Int64()), func() { _ = cmd.Process.Kill() }) // ended already is as good
	_ = cmd.Wait()                                                                       // killed or not, what counts is what is left
	timer.Stop()
}

// requireNothingOrAll holds the target to what its name leads to.
func requireNothingOrAll(t *testing.T, at string) (found bool) {
	t.Helper()
	hosts := docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost))
	src, err := converter.ParseSource(at, hosts)
	require.NoError(t, err)
	defer src.Close()
	root, err := src.Root(t.Context())
	if err != nil {
		require.Regexp(t, "not found|no such file|holds no image", err.Error())
		return false
	}
	var follow func(d ocispec.Descriptor)
	follow = func(d ocispec.Descriptor) {
		rc, err := src.Open(t.Context(), d)
		require.NoError(t, err)
		defer rc.Close()
		b, err := io.ReadAll(rc)
		require.NoError(t, err)
		require.Equal(t, d.Digest, digest.FromBytes(b))
		var doc struct {
			ocispec.Manifest
			Manifests []ocispec.Descriptor
		}
		if images.IsManifestType(d.MediaType) || images.IsIndexType(d.MediaType) {
			require.NoError(t, json.Unmarshal(b, &doc))
			for _, c := range append(doc.Layers, doc.Manifests...) {
				follow(c)
			}
			if images.IsManifestType(d.MediaType) {
				follow(doc.Config)
			}
		}
	}
	follow(root)
	return true
}

// noisyLayout is an image of several layers that take a while to convert.
func noisyLayout(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	add := func(mediaType string, b []byte) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
		path := filepath.Join(dir, "blobs/sha256", d.Digest.Encoded())
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, b, 0o644))
		return d
	}
	addJSON := func(mediaType string, v any) ocispec.Descriptor {
		b, err := json.Marshal(v)
		require.NoError(t, err)
		return add(mediaType, b)
	}
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: ocispec.RootFS{Type: "layers"}}
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	m.SchemaVersion = 2
	for i := range 5 {
		noise := make([]byte, 3<<20)
		_, err := rand.Read(noise)
		require.NoError(t, err)
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		require.NoError(t, w.WriteHeader(&tar.Header{Name: fmt.Sprintf("file-%d", i), Mode: 0o644, Size: int64(len(noise))}))
		_, err = w.Write(noise)
		require.NoError(t, err)
		require.NoError(t, w.Close())
		m.Layers = append(m.Layers, add(ocispec.MediaTypeImageLayer, b.Bytes()))
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, m.Layers[i].Digest)
	}
	m.Config = addJSON(ocispec.MediaTypeImageConfig, config)
	raw, err := json.Marshal(ocispec.Index{Manifests: []ocispec.Descriptor{addJSON(m.MediaType, m)}})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "index.json"), raw, 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644))
	return dir
}
