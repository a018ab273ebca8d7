package converter_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/differ/converter"
)

const signatureType = "application/vnd.cncf.notary.signature"

// sign adds a manifest that refers to d.
func (l *layout) sign(d ocispec.Descriptor) ocispec.Descriptor {
	s := l.addJSON(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: signatureType,
		Config: l.add("application/vnd.oci.empty.v1+json", []byte("{}")), Layers: []ocispec.Descriptor{l.add("application/jose+json", []byte(`{"signature":1}`))},
		Subject: &ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size},
	})
	s.ArtifactType = signatureType
	return s
}

func tagOf(d ocispec.Descriptor) string { return "sha256-" + d.Digest.Encoded() }

// TestReferrersOfALayout has all three schemes in one layout.
func TestReferrersOfALayout(t *testing.T) {
	l := newLayout(t)
	d := l.image(amd64, "a")
	signature, cosign := l.sign(d), l.image(amd64, "cosign")
	list := l.addJSON(ocispec.MediaTypeImageIndex, ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{signature}})
	l.tag(map[string]ocispec.Descriptor{"one": d, "": signature, tagOf(d): list, tagOf(d) + ".sig": cosign, "other": l.image(arm64, "b")})
	res, err := run(t, "oci:"+l.dir+":one", "oci:"+t.TempDir(), host)
	require.NoError(t, err)
	require.ElementsMatch(t, []converter.Referrer{
		{Subject: d.Digest, Digest: signature.Digest, MediaType: signature.MediaType, ArtifactType: signatureType},
		{Subject: d.Digest, Digest: list.Digest, MediaType: list.MediaType, Tag: tagOf(d)},
		{Subject: d.Digest, Digest: cosign.Digest, MediaType: cosign.MediaType, Tag: tagOf(d) + ".sig"},
	}, res.Referrers)
}

// TestReferrersOfARegistry asks a registry without the API, so that the fall-back
// tag counts, one with it, and one that refuses.
func TestReferrersOfARegistry(t *testing.T) {
	reg := registry(t)
	l := newLayout(t)
	d := l.image(amd64, "a")
	signature := l.sign(d)
	list := l.addJSON(ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{signature},
	})
	for tag, d := range map[string]ocispec.Descriptor{"1": d, tagOf(d): list, tagOf(d) + ".sbom": signature} {
		l.tag(map[string]ocispec.Descriptor{"x": d})
		pushLayout(t, l, reg.Addr()+"/signed:"+tag)
	}
	bySubject := converter.Referrer{Subject: d.Digest, Digest: signature.Digest, MediaType: signature.MediaType, ArtifactType: signatureType}
	byTag := converter.Referrer{Subject: d.Digest, Digest: signature.Digest, MediaType: signature.MediaType, Tag: tagOf(d) + ".sbom"}
	res, err := run(t, reg.Addr()+"/signed:1", "oci:"+t.TempDir(), host)
	require.NoError(t, err)
	require.Equal(t, []converter.Referrer{bySubject, byTag}, res.Referrers)
	require.Equal(t, "signature", bySubject.What())
	require.Equal(t, "SBOM", byTag.What())
	raw, err := json.Marshal(res)
	require.NoError(t, err)
	require.Contains(t, string(raw), signature.Digest.String())

	asked := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.Contains(r.URL.Path, "/referrers/"):
			asked++
			w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
			_, _ = w.Write([]byte(`{"schemaVersion":2,"manifests":[{"mediaType":"` + signature.MediaType + `","digest":"` + signature.Digest.String() + `","size":7,"artifactType":"application/spdx+json"}]}`))
		default:
			reg.ServeHTTP(w, r)
		}
	}))
	defer server.Close()
	at := strings.TrimPrefix(server.URL, "http://") + "/signed:1"
	res, err = run(t, at, "oci:"+t.TempDir(), host)
	require.NoError(t, err)
	require.Equal(t, 1, asked)
	require.Len(t, res.Referrers, 2)
	require.Equal(t, "SBOM", res.Referrers[0].What())

	reg.Refuse(func(r *http.Request) int {
		if strings.Contains(r.URL.Path, "/referrers/") || strings.Contains(r.URL.Path, "/manifests/sha256-") {
			return http.StatusForbidden
		}
		return 0
	})
	res, err = run(t, reg.Addr()+"/signed:1", "oci:"+t.TempDir(), host)
	require.NoError(t, err, "a registry that does not tell is no reason to fail")
	require.Len(t, res.Warnings, 1)
	require.Contains(t, res.Warnings[0], "is not known")
}

func TestWhatReferrersAre(t *testing.T) {
	for r, want := range map[converter.Referrer]string{
		{Tag: "sha256-00.sig"}: "signature", {Tag: "sha256-00.att"}: "attestation", {ArtifactType: "application/vnd.cyclonedx+json"}: "SBOM",
		{ArtifactType: "application/vnd.in-toto+json"}: "attestation", {ArtifactType: "text/plain"}: "referrer",
	} {
		require.Equal(t, want, r.What())
	}
}
