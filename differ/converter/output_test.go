package converter_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

const (
	refType   = "vnd.docker.reference.type"
	refDigest = "vnd.docker.reference.digest"
	predicate = "https://slsa.dev/provenance/v1"
)

// requireWhole reads everything that d leads to and holds it against its
// digests: what has a name must not lead to anything that is not there.
func requireWhole(t testing.TB, at string, d ocispec.Descriptor) {
	t.Helper()
	b := fetch(t, at, d)
	require.Len(t, b, int(d.Size))
	var doc struct {
		ocispec.Manifest
		Manifests []ocispec.Descriptor
	}
	switch {
	case images.IsIndexType(d.MediaType):
		require.NoError(t, json.Unmarshal(b, &doc))
		for _, m := range doc.Manifests {
			requireWhole(t, at, m)
		}
	case images.IsManifestType(d.MediaType):
		require.NoError(t, json.Unmarshal(b, &doc))
		for _, l := range append(doc.Layers, doc.Config) {
			requireWhole(t, at, l)
		}
	}
}

// attest adds a build record of the image d, as BuildKit does it: as an image
// (old) or as an artifact with a subject.
func (l *layout) attest(d ocispec.Descriptor, artifact bool) ocispec.Descriptor {
	statement := l.addJSON("application/vnd.in-toto+json", map[string]any{
		"_type": "https://in-toto.io/Statement/v0.1", "predicateType": predicate,
		"subject": []any{map[string]any{"name": "x", "digest": map[string]string{"sha256": d.Digest.Encoded()}}},
	})
	statement.Annotations = map[string]string{"in-toto.io/predicate-type": predicate}
	m := map[string]any{
		"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageManifest, "layers": []any{statement}, "unknown": "kept",
		"config": l.addJSON(ocispec.MediaTypeImageConfig, map[string]any{"os": "unknown", "architecture": "unknown", "of": d.Digest}),
	}
	if artifact {
		m["subject"] = ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
		m["artifactType"] = "application/vnd.docker.attestation.manifest.v1+json"
	}
	a := l.addJSON(ocispec.MediaTypeImageManifest, m)
	a.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	a.Annotations = map[string]string{refType: "attestation-manifest", refDigest: d.Digest.String(), "other": "kept"}
	return a
}

// built adds an index as BuildKit writes it: two images, annotated, each with a
// build record.
func (l *layout) built() ocispec.Descriptor {
	one, two := l.image(amd64, "a"), l.image(arm64, "b")
	one.Platform, two.Platform = &amd64, &arm64
	one.Annotations = map[string]string{"org.example.entry": "kept"}
	return l.addJSON(ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Annotations: map[string]string{"org.example.index": "kept"},
		Manifests:   []ocispec.Descriptor{one, two, l.attest(one, false), l.attest(two, true)},
	})
}

func TestOutputIndexHoldsTarAndErofs(t *testing.T) {
	reg := registry(t)
	l := newLayout(t)
	l.tag(map[string]ocispec.Descriptor{"x": l.built()})
	from, at := "oci:"+l.dir, reg.Addr()+"/both:1"
	var was ocispec.Index
	fetchJSON(t, from, root(t, from), &was)

	res, err := run(t, from, at, converter.Options{AllPlatforms: true, Output: converter.Index})
	require.NoError(t, err)
	require.Empty(t, res.Warnings)
	require.Equal(t, root(t, at).Digest, res.Digest)
	requireWhole(t, at, root(t, at))
	var idx ocispec.Index
	fetchJSON(t, at, root(t, at), &idx)
	require.Equal(t, map[string]string{"org.example.index": "kept"}, idx.Annotations)
	require.Len(t, idx.Manifests, 8)
	for i := range 2 {
		tar, lazy := idx.Manifests[i], idx.Manifests[2+i]
		require.Equal(t, was.Manifests[i].Digest, tar.Digest, "the tar image stands first and is what it was")
		require.Empty(t, tar.Platform.OSFeatures)
		require.Equal(t, []string{"erofs"}, lazy.Platform.OSFeatures)
		require.Equal(t, tar.Platform.Architecture, lazy.Platform.Architecture)
		require.Equal(t, was.Manifests[i].Annotations, lazy.Annotations)
		checkImage(t, at, lazy, differ.Zstd)
		oldRecord, newRecord := idx.Manifests[4+i], idx.Manifests[6+i]
		require.Equal(t, was.Manifests[2+i].Digest, oldRecord.Digest)
		require.Equal(t, lazy.Digest.String(), newRecord.Annotations[refDigest])
	}

	again, err := run(t, at, at, converter.Options{AllPlatforms: true, Output: converter.Index})
	require.NoError(t, err)
	require.Equal(t, res.Digest, again.Digest, "what holds both already stays as it is")

	// An image that is native has no tar to keep.
	plain := "oci:" + t.TempDir()
	_, err = run(t, at, plain, host)
	require.NoError(t, err)
	res, err = run(t, plain, "oci:"+t.TempDir(), converter.Options{Platforms: host.Platforms, Output: converter.Index})
	require.NoError(t, err)
	require.Len(t, res.Warnings, 1)
	require.Contains(t, res.Warnings[0], "native layers already")
	require.Equal(t, ocispec.MediaTypeImageIndex, res.MediaType)
}

func TestAttestationsAreBoundToTheNewImage(t *testing.T) {
	l := newLayout(t)
	l.tag(map[string]ocispec.Descriptor{"x": l.built()})
	from, to := "oci:"+l.dir, "oci:"+t.TempDir()
	res, err := run(t, from, to, converter.Options{AllPlatforms: true})
	require.NoError(t, err)
	require.Empty(t, res.Skipped)
	require.Empty(t, res.Warnings)
	requireWhole(t, to, root(t, to))
	var was, idx ocispec.Index
	fetchJSON(t, from, root(t, from), &was)
	fetchJSON(t, to, root(t, to), &idx)
	require.Len(t, idx.Manifests, 4)
	require.Len(t, res.Attestations, 2)
	for i, a := range res.Attestations {
		image, record := idx.Manifests[i], idx.Manifests[2+i]
		require.Equal(t, converter.Attestation{
			Source: was.Manifests[2+i].Digest, SourceImage: was.Manifests[i].Digest,
			Digest: record.Digest, Image: image.Digest, Predicates: []string{predicate},
		}, a)
		require.Equal(t, map[string]string{refType: "attestation-manifest", refDigest: image.Digest.String(), "other": "kept"}, record.Annotations)
		require.Equal(t, "unknown", record.Platform.OS)
		var m struct {
			ocispec.Manifest
			Unknown string
		}
		fetchJSON(t, to, record, &m)
		require.Equal(t, "kept", m.Unknown)
		if i == 1 {
			require.Equal(t, image.Digest, m.Subject.Digest)
		} else {
			require.Nil(t, m.Subject)
			require.Equal(t, a.Source, a.Digest, "nothing in it names the image")
		}
		var statement struct {
			Subject []struct{ Digest map[string]string }
		}
		fetchJSON(t, to, m.Layers[0], &statement)
		require.Equal(t, a.SourceImage.Encoded(), statement.Subject[0].Digest["sha256"], "who signed a statement said it of the source")
	}

	res, err = run(t, from, "oci:"+t.TempDir(), host)
	require.NoError(t, err)
	require.Equal(t, ocispec.MediaTypeImageManifest, res.MediaType)
	require.Len(t, res.Attestations, 1)
	require.Empty(t, res.Attestations[0].Digest)
	require.Len(t, res.Warnings, 1)
	require.Contains(t, res.Warnings[0], "--output index keeps it")
}

func TestAnnotationsOfLayersAreKept(t *testing.T) {
	l := newLayout(t)
	var m ocispec.Manifest
	require.NoError(t, json.Unmarshal(l.read(l.image(amd64, "a")), &m))
	m.Layers[0].Annotations = map[string]string{
		"org.example.layer": "kept", "containerd.io/snapshot/stargz/toc.digest": digest.FromString("x").String(),
		chunk.AnnotationIndexRange: "1:2", "io.github.containers.zstd-chunked.manifest-checksum": "x",
	}
	m.ArtifactType = "application/vnd.example"
	m.Subject = &ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("s"), Size: 1}
	l.tag(map[string]ocispec.Descriptor{"x": l.addJSON(ocispec.MediaTypeImageManifest, m)})
	to := "oci:" + t.TempDir()
	_, err := run(t, "oci:"+l.dir, to, host)
	require.NoError(t, err)
	var got ocispec.Manifest
	fetchJSON(t, to, root(t, to), &got)
	require.Equal(t, "kept", got.Layers[0].Annotations["org.example.layer"])
	require.NotEqual(t, "1:2", got.Layers[0].Annotations[chunk.AnnotationIndexRange])
	for k := range got.Layers[0].Annotations {
		require.NotContains(t, k, "stargz")
		require.NotContains(t, k, "zstd-chunked")
	}
	require.Equal(t, m.Subject, got.Subject)
	require.Equal(t, m.ArtifactType, got.ArtifactType)
}

// TestTarsAreMountedFromTheSource has source and target in one registry: the tar
// layers of the index need no upload, and are read once, for the conversion.
func TestTarsAreMountedFromTheSource(t *testing.T) {
	reg := registry(t)
	l := newLayout(t)
	l.tag(map[string]ocispec.Descriptor{"one": l.image(amd64, "a")})
	from, to := reg.Addr()+"/team/plain:1", reg.Addr()+"/other/both:1"
	pushLayout(t, l, from)
	reg.Reset()
	opts := host
	opts.Output = converter.Index
	_, err := run(t, from, to, opts)
	require.NoError(t, err)
	gets := map[string]int{}
	mounts, uploads := 0, 0
	for _, r := range reg.Log() {
		switch {
		case r.Method == http.MethodGet && r.Blob() != "":
			gets[r.Blob()]++
		case r.Method == http.MethodPost && r.Status == http.StatusCreated:
			mounts++
		case r.Method == http.MethodPut && strings.Contains(r.Path, "/blobs/uploads/"):
			uploads++
		}
	}
	require.Equal(t, 3, mounts)
	require.Equal(t, 5, uploads, "three EROFS layers and both configs")
	for d, n := range gets {
		require.Equal(t, 1, n, d)
	}
	requireWhole(t, to, root(t, to))
}
