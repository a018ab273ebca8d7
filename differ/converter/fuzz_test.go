package converter

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

// memory is a source and a target in memory.
type memory struct {
	content map[digest.Digest][]byte
	root    ocispec.Descriptor
	named   ocispec.Descriptor
}

func (m *memory) String() string { return "memory" }

func (m *memory) Close() error { return nil }

func (m *memory) Root(context.Context) (ocispec.Descriptor, error) { return m.root, nil }

func (m *memory) Open(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	b, ok := m.content[d.Digest]
	if !ok {
		return nil, fmt.Errorf("%s: not found", d.Digest)
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func (m *memory) Put(ctx context.Context, d ocispec.Descriptor, open func(context.Context) (io.ReadCloser, error)) (bool, error) {
	rc, err := open(ctx)
	if err != nil {
		return false, err
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	if err != nil {
		return false, err
	}
	if digest.FromBytes(b) != d.Digest || int64(len(b)) != d.Size {
		return false, fmt.Errorf("%s: other bytes came", d.Digest)
	}
	m.content[d.Digest] = b
	return false, nil
}

func (m *memory) Finish(_ context.Context, root ocispec.Descriptor, _ []byte) error {
	m.named = root
	return nil
}

// FuzzImage gives the converter hostile documents: manifest, config and index
// come from outside. It may refuse them but not panic, and what it publishes is
// whole.
func FuzzImage(f *testing.F) {
	layer := []byte("not a tar")
	l := digest.FromBytes(layer)
	native := fmt.Sprintf(`{"mediaType":"application/vnd.erofs.layer.v1","digest":%q,"size":%d}`, l, len(layer))
	config := fmt.Sprintf(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[%q]}}`, l)
	f.Add(`{"layers":[`+native+`]}`, config)
	f.Add(`{"layers":[`+native+`,`+native+`]}`, config)
	f.Add(`{"layers":[{"digest":"sha256:x"}]}`, `{"os.features":["a"],"rootfs":null}`)
	f.Add(`{"manifests":[{}]}`, `[]`)
	f.Add(`{"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"`+l.String()+`","size":-1}]}`, config)
	f.Add(`{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"`+l.String()+`","size":9,"annotations":{
		"vnd.docker.reference.type":"attestation-manifest","vnd.docker.reference.digest":"`+l.String()+`"}}]}`, config)
	work := f.TempDir()
	f.Fuzz(func(t *testing.T, manifest, config string) {
		src := &memory{content: map[digest.Digest][]byte{l: layer, digest.FromString(config): []byte(config)}}
		var doc map[string]any
		if json.Unmarshal([]byte(manifest), &doc) == nil && doc != nil {
			doc["config"] = map[string]any{"mediaType": ocispec.MediaTypeImageConfig, "digest": digest.FromString(config), "size": len(config)}
			b, err := json.Marshal(doc)
			require.NoError(t, err)
			manifest = string(b)
		}
		src.content[digest.FromString(manifest)] = []byte(manifest)
		for _, mt := range []string{ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex} {
			src.root = ocispec.Descriptor{MediaType: mt, Digest: digest.FromString(manifest), Size: int64(len(manifest))}
			dst := &memory{content: map[digest.Digest][]byte{}}
			_, err := Image(t.Context(), src, dst, Options{AllPlatforms: true, WorkDir: work, Output: Output(len(manifest) % 2)})
			if err != nil {
				require.Empty(t, dst.named.Digest)
				continue
			}
			require.Contains(t, dst.content, dst.named.Digest)
		}
	})
}

// FuzzRewriteConfig checks that a rewritten config is stable and loses nothing.
func FuzzRewriteConfig(f *testing.F) {
	for _, s := range []string{`{}`, `{"os.features":["erofs"],"rootfs":{"diff_ids":[]},"x":1}`, `{"os.features":5}`, `[]`, `null`, `{"a":`, `{"rootfs":1,"rootfs":2}`} {
		f.Add(s)
	}
	ids := []digest.Digest{digest.FromString("x")}
	f.Fuzz(func(t *testing.T, s string) {
		once, err := rewriteConfig([]byte(s), ids, true)
		if err != nil {
			return
		}
		twice, err := rewriteConfig(once, ids, true)
		require.NoError(t, err)
		require.Equal(t, once, twice)
		var before, after map[string]json.RawMessage
		require.NoError(t, json.Unmarshal([]byte(s), &before))
		require.NoError(t, json.Unmarshal(once, &after))
		for k := range before {
			if !strings.EqualFold(k, "os.features") && !strings.EqualFold(k, "rootfs") {
				require.Contains(t, after, k)
			}
		}
		var cfg ocispec.Image
		if json.Unmarshal(once, &cfg) == nil {
			require.Equal(t, ids, cfg.RootFS.DiffIDs)
			require.Contains(t, cfg.OSFeatures, osFeature)
		}
		back, err := rewriteConfig(once, ids, false)
		require.NoError(t, err)
		cfg = ocispec.Image{}
		if json.Unmarshal(back, &cfg) == nil {
			require.NotContains(t, cfg.OSFeatures, osFeature)
		}
	})
}

// FuzzLocation checks that no location reaches the file system or a registry
// in another shape than it was written.
func FuzzLocation(f *testing.F) {
	for _, s := range []string{"busybox", "oci:", "oci:/x:y", "docker-archive:a:b/c:d", "oci-archive:x", "a@sha256:00", "::", "h/../x:1", "docker://docker://x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		src, err := ParseSource(s, nil)
		if err != nil {
			require.ErrorIs(t, err, ErrLocation)
			return
		}
		require.Equal(t, s, src.String())
		switch src := src.(type) {
		case *registrySource:
			require.NotContains(t, src.repo, "..")
			require.True(t, strings.HasPrefix(src.ref, src.host+"/"+src.repo))
		case *layoutSource:
			require.True(t, strings.HasPrefix(s, prefixLayout+src.dir))
		case *archiveSource:
			require.Contains(t, s, src.file)
		}
	})
}
