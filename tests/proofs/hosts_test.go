package proofs

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/remote/remotetest"
)

// A registry that exists only in hosts.toml, with two mirrors. The first one dies
// in the middle of an answer while a container reads; the second one goes on.
func TestMirrorDiesUnderAContainer(t *testing.T) {
	const registry = "registry.test.invalid"
	first, second := openShop(t, scratch(t)), openShop(t, scratch(t))
	img := first.convert(first.layered(), "1", raw)
	require.Equal(t, img.manifest, second.convert(second.layered(), "1", raw).manifest, "two conversions differ")
	ref := registry + "/app:1"

	certs := filepath.Join(scratch(t), "certs.d")
	require.NoError(t, os.MkdirAll(filepath.Join(certs, registry), 0o755))
	hosts := "server = \"https://" + registry + "\"\n"
	for _, s := range []*shop{first, second} {
		hosts += "[host.\"http://" + s.addr() + "\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
	}
	require.NoError(t, os.WriteFile(filepath.Join(certs, registry, "hosts.toml"), []byte(hosts), 0o644))

	n := startNode(t, map[string]any{"registry": map[string]any{"certs_dir": certs}})
	n.pull(ref, "--hosts-dir", certs)
	requireLazy(t, first, img)
	require.Len(t, n.mounts(), len(img.manifest.Layers))
	require.Empty(t, second.Log(), "the first mirror comes first")

	var died atomic.Bool
	top := img.manifest.Layers[len(img.manifest.Layers)-1].Digest.String()
	first.between(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case died.Load():
				remotetest.Abort(w, r, next)
			case strings.HasSuffix(r.URL.Path, top):
				died.Store(true)
				remotetest.Truncate(100_000)(w, r, next)
			default:
				next.ServeHTTP(w, r)
			}
		})
	})
	require.Equal(t, "/lines: "+lines(), n.run(ref, "one", "/hello", "/lines"))
	require.True(t, died.Load(), "the first mirror was not asked")
	require.NotEmpty(t, second.gets(top))
	requireLazy(t, second, img)
	require.Empty(t, pages(t, n.find("lines"), lines()))
}
