package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

func TestMain(m *testing.M) { testscript.Main(m, map[string]func(){"lazyerofs": main}) }

// TestScripts runs testdata/script with a registry of their own ($REGISTRY) and
// a command that makes plain images.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			reg, err := testenv.StartRegistry(filepath.Join(env.WorkDir, ".registry"))
			if err != nil {
				return err
			}
			env.Defer(func() {
				if err := reg.Close(); err != nil {
					panic(err)
				}
			})
			env.Setenv("REGISTRY", reg.Addr())
			env.Setenv("XDG_CACHE_HOME", filepath.Join(env.WorkDir, ".home-cache"))
			env.Setenv("DOCKER_CONFIG", filepath.Join(env.WorkDir, ".docker"))
			return nil
		},
		Cmds:                map[string]func(ts *testscript.TestScript, neg bool, args []string){"layout": scriptLayout, "signed": scriptSigned, "bare": scriptBare, "spoil": scriptSpoil, "code": scriptCode},
		RequireExplicitExec: false,
	})
}

// scriptCode is "code N ARG...": lazyerofs ends with that exit code.
func scriptCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N ARG...")
	}
	got := ts.Exec("lazyerofs", args[1:]...)
	var exit *exec.ExitError
	if !errors.As(got, &exit) || strconv.Itoa(exit.ExitCode()) != args[0] {
		ts.Fatalf("lazyerofs ended with %v and not with %s", got, args[0])
	}
}

// scriptBare is "bare DIR": the manifest of the layout's one image says nothing of its
// layers any more but what they are.
func scriptBare(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: bare DIR")
	}
	dir := ts.MkAbs(args[0])
	read := func(name string, v any) {
		b, err := os.ReadFile(filepath.Join(dir, name))
		ts.Check(err)
		ts.Check(json.Unmarshal(b, v))
	}
	write := func(name func([]byte) string, v any) []byte {
		b, err := json.Marshal(v)
		ts.Check(err)
		ts.Check(os.WriteFile(filepath.Join(dir, name(b)), b, 0o644))
		return b
	}
	blob := func(b []byte) string { return "blobs/sha256/" + digest.FromBytes(b).Encoded() }
	var index ocispec.Index
	read("index.json", &index)
	var m ocispec.Manifest
	read("blobs/sha256/"+index.Manifests[0].Digest.Encoded(), &m)
	for i := range m.Layers {
		m.Layers[i].Annotations = nil
	}
	b := write(blob, m)
	index.Manifests[0].Digest, index.Manifests[0].Size = digest.FromBytes(b), int64(len(b))
	write(func([]byte) string { return "index.json" }, index)
}

// scriptLayout is "layout DIR ARCH... -- ROOT...": an OCI layout with an index
// of one image per architecture, each directory ROOT a layer.
func scriptLayout(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 4 {
		ts.Fatalf("usage: layout DIR ARCH... -- ROOT...")
	}
	dir := ts.MkAbs(args[0])
	add := func(mediaType string, v any) ocispec.Descriptor {
		b, ok := v.([]byte)
		if !ok {
			var err error
			b, err = json.Marshal(v)
			ts.Check(err)
		}
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
		path := filepath.Join(dir, "blobs/sha256", d.Digest.Encoded())
		ts.Check(os.MkdirAll(filepath.Dir(path), 0o755))
		ts.Check(os.WriteFile(path, b, 0o644))
		return d
	}
	var archs []string
	args = args[1:]
	for ; len(args) > 0 && args[0] != "--"; args = args[1:] {
		archs = append(archs, args[0])
	}
	var layers []ocispec.Descriptor
	var ids []digest.Digest
	for _, root := range args[1:] {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		ts.Check(w.AddFS(os.DirFS(ts.MkAbs(root))))
		ts.Check(w.Close())
		layers = append(layers, add(ocispec.MediaTypeImageLayer, b.Bytes()))
		ids = append(ids, digest.FromBytes(b.Bytes()))
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, arch := range archs {
		p := ocispec.Platform{OS: "linux", Architecture: arch}
		config := add(ocispec.MediaTypeImageConfig, ocispec.Image{Platform: p, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: ids}})
		m := add(ocispec.MediaTypeImageManifest, ocispec.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: layers,
		})
		m.Platform = &p
		index.Manifests = append(index.Manifests, m)
	}
	top := add(ocispec.MediaTypeImageIndex, index)
	raw, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{top}})
	ts.Check(err)
	ts.Check(os.WriteFile(filepath.Join(dir, "index.json"), raw, 0o644))
	ts.Check(os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644))
}

// scriptSigned is "signed DIR": an OCI layout with an image "one" and what cosign
// would put beside it.
func scriptSigned(ts *testscript.TestScript, _ bool, args []string) {
	scriptLayout(ts, false, []string{args[0], "amd64", "--", "base"})
	file := filepath.Join(ts.MkAbs(args[0]), "index.json")
	raw, err := os.ReadFile(file)
	ts.Check(err)
	var index ocispec.Index
	ts.Check(json.Unmarshal(raw, &index))
	image := index.Manifests[0]
	image.Annotations = map[string]string{ocispec.AnnotationRefName: "one"}
	signature := index.Manifests[0]
	signature.Annotations = map[string]string{ocispec.AnnotationRefName: "sha256-" + image.Digest.Encoded() + ".sig"}
	index.Manifests = []ocispec.Descriptor{image, signature}
	raw, err = json.Marshal(index)
	ts.Check(err)
	ts.Check(os.WriteFile(file, raw, 0o644))
}

// scriptSpoil is "spoil DIR": changes a byte of the largest blob of a layout.
func scriptSpoil(ts *testscript.TestScript, _ bool, args []string) {
	names, err := filepath.Glob(filepath.Join(ts.MkAbs(args[0]), "blobs/sha256/*"))
	ts.Check(err)
	var largest []byte
	var file string
	for _, n := range names {
		b, err := os.ReadFile(n)
		ts.Check(err)
		if len(b) > len(largest) && !json.Valid(b) {
			largest, file = b, n
		}
	}
	largest[len(largest)/3] ^= 1
	ts.Check(os.Chmod(file, 0o644))
	ts.Check(os.WriteFile(file, largest, 0o644))
}
