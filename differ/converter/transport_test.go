package converter_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

// pushLayout copies the first image of a layout with containerd's pusher.
func pushLayout(t *testing.T, l *layout, ref string) {
	t.Helper()
	p, err := docker.NewResolver(docker.ResolverOptions{Hosts: hosts}).Pusher(t.Context(), ref)
	require.NoError(t, err)
	var push func(d ocispec.Descriptor)
	push = func(d ocispec.Descriptor) {
		b := l.read(d)
		var m struct {
			ocispec.Manifest
			Manifests []ocispec.Descriptor
		}
		if json.Unmarshal(b, &m) == nil {
			for _, c := range append(append(m.Manifests, m.Layers...), m.Config) {
				if c.Digest != "" {
					push(c)
				}
			}
		}
		w, err := p.Push(t.Context(), d)
		if errdefs.IsAlreadyExists(err) {
			return
		}
		require.NoError(t, err)
		require.NoError(t, content.Copy(t.Context(), w, bytes.NewReader(b), d.Size, d.Digest))
		require.NoError(t, w.Close())
	}
	push(l.first())
}

func (l *layout) read(d ocispec.Descriptor) []byte {
	b, err := os.ReadFile(filepath.Join(l.dir, "blobs/sha256", d.Digest.Encoded()))
	require.NoError(l.t, err)
	return b
}

func (l *layout) first() ocispec.Descriptor {
	var idx ocispec.Index
	b, err := os.ReadFile(filepath.Join(l.dir, "index.json"))
	require.NoError(l.t, err)
	require.NoError(l.t, json.Unmarshal(b, &idx))
	return idx.Manifests[0]
}

func addFile(t *testing.T, w *tar.Writer, name string, b []byte) {
	t.Helper()
	require.NoError(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(b)), Mode: 0o644}))
	_, err := w.Write(b)
	require.NoError(t, err)
}

// saveOCI packs the layout, gzipped as a whole.
func saveOCI(t *testing.T, l *layout, file string) {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	require.NoError(t, filepath.WalkDir(l.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(l.dir, path)
		require.NoError(t, err)
		content, err := os.ReadFile(path)
		require.NoError(t, err)
		addFile(t, w, name, content)
		return nil
	}))
	require.NoError(t, w.Close())
	require.NoError(t, os.WriteFile(file, gzipped(t, b.Bytes()), 0o644))
}

// saveDocker packs the image as "docker save" did before it wrote OCI layouts.
func saveDocker(t *testing.T, l *layout, file string) {
	t.Helper()
	var m ocispec.Manifest
	require.NoError(t, json.Unmarshal(l.read(l.first()), &m))
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	var names []string
	for i, plain := range tars(t, "a") {
		name := string(rune('a'+i)) + "/layer.tar"
		addFile(t, w, name, plain)
		names = append(names, name)
	}
	addFile(t, w, "config.json", l.read(m.Config))
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{"plain:1", "plain:2"}, "Layers": names}})
	require.NoError(t, err)
	addFile(t, w, "manifest.json", manifest)
	require.NoError(t, w.Close())
	require.NoError(t, os.WriteFile(file, b.Bytes(), 0o644))
}
