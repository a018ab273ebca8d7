package remote

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

func target(d string) ocispec.Descriptor { return ocispec.Descriptor{Digest: digest.Digest(d)} }

func noHosts(reference.Spec) ([]docker.RegistryHost, error) { return nil, errors.New("not asked") }

// FuzzLabels feeds the whole chain with hostile label values: what comes out
// must be safe to build URLs from.
func FuzzLabels(f *testing.F) {
	d := string(digest.FromString("x"))
	for _, ref := range []string{"reg.example/a/b:1", "localhost:5000/a@" + d, "a", "http://x/y", "h/../../x", "h/a%2f..%2fb", "u:p@h/a", "h/a?x=y", "h/A", "[::1]:5000/a", "h/a b", "h/a%3fb#c"} {
		f.Add(ref, d, d, "123")
	}
	f.Add("h/a", "sha256:../../..", "x", "-1")
	f.Fuzz(func(t *testing.T, ref, dgst, layers, size string) {
		for _, keys := range [][2]string{
			{snapshotters.TargetRefLabel, snapshotters.TargetLayerDigestLabel},
			{"containerd.io/snapshot/remote/stargz.reference", "containerd.io/snapshot/remote/stargz.digest"},
			{LabelImageRef, LabelLayerDigest},
		} {
			srcs, err := Sources(noHosts)(map[string]string{
				keys[0]: ref, keys[1]: dgst, snapshotters.TargetImageLayersLabel: layers,
				"containerd.io/snapshot/remote/stargz.layers": layers, "containerd.io/snapshot/remote/urls": "http://evil.example/x",
				"containerd.io/snapshot/remote/urls.0": "http://evil.example/y", chunk.LabelBlobSize: size,
			})
			if err != nil {
				require.ErrorIs(t, err, ErrNoSource)
				continue
			}
			s := srcs[0]
			require.NoError(t, checkDigest(s.Target.Digest))
			require.Empty(t, s.Target.URLs)
			require.Positive(t, s.Target.Size)
			u := newRepo(s).url(docker.RegistryHost{Scheme: "https", Host: "h.example", Path: "/v2"}, "blobs/"+s.Target.Digest.String())
			require.Equal(t, "h.example", u.Host)
			require.True(t, strings.HasPrefix(u.Path, "/v2/"))
			require.NotContains(t, u.Path, "..")
			require.NotContains(t, u.EscapedPath(), "?")
			require.NotContains(t, u.EscapedPath(), "%")
		}
	})
}
