package converter_test

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/fs/remote/remotetest"
)

func TestLocations(t *testing.T) {
	dir := t.TempDir()
	for _, s := range []string{"", "oci:", "oci-archive:", "docker-archive:", "UPPER", "a b", "http://x/y", "oci::tag", "x:y:z"} {
		_, err := converter.ParseSource(s, hosts)
		require.ErrorIs(t, err, converter.ErrLocation, s)
	}
	for _, s := range []string{"", "oci:", "docker-archive:x.tar", "busybox@" + digest.FromString("x").String(), "busybox:1@" + digest.FromString("x").String()} {
		_, err := converter.ParseTarget(s, hosts)
		require.ErrorIs(t, err, converter.ErrLocation, s)
	}
	for _, s := range []string{"busybox", "localhost:5000/a", "docker://quay.io/a/b:c", "oci:" + dir + "/with:colon", "oci-archive:" + dir + "/x.tar"} {
		_, err := converter.ParseSource(s, hosts)
		require.NoError(t, err, s)
		dst, err := converter.ParseTarget(s, hosts)
		require.NoError(t, err, s)
		require.Equal(t, s, dst.String())
		require.NoError(t, dst.Close())
	}
	for _, name := range []string{"pipe", "dir"} {
		if name == "pipe" {
			require.NoError(t, unix.Mkfifo(filepath.Join(dir, name), 0o600))
		} else {
			require.NoError(t, os.Mkdir(filepath.Join(dir, name), 0o700))
		}
		_, err := converter.ParseTarget("oci-archive:"+filepath.Join(dir, name), hosts)
		require.ErrorIs(t, err, converter.ErrLocation)
		require.ErrorContains(t, err, ", which is not replaced; name a regular file")
	}
	_, err := converter.ParseTarget("oci-archive:"+dir+"/no/such/x.tar", hosts)
	require.ErrorIs(t, err, os.ErrNotExist)
	left, err := filepath.Glob(dir + "/.*")
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestSourcesThatAreNone(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(dir+"/text", []byte("not a tar"), 0o600))
	require.NoError(t, os.MkdirAll(dir+"/empty", 0o755))
	require.NoError(t, os.WriteFile(dir+"/empty/index.json", []byte(`{"manifests":[]}`), 0o600))
	require.NoError(t, os.MkdirAll(dir+"/json", 0o755))
	require.NoError(t, os.WriteFile(dir+"/json/index.json", []byte(`{`), 0o600))
	l := newLayout(t)
	l.tag(map[string]ocispec.Descriptor{"one": l.image(amd64, "a")})
	for from, want := range map[string]string{
		"oci:" + dir + "/absent":            "no such file",
		"oci:" + dir + "/empty":             "holds no image",
		"oci:" + dir + "/json":              "is not JSON",
		"oci:" + l.dir + ":two":             `no image is named "two"; it holds ["one"]`,
		"oci-archive:" + dir + "/text":      "not a docker or OCI image archive",
		"docker-archive:" + dir + "/absent": "no such file",
	} {
		_, err := run(t, from, "oci:"+t.TempDir(), host)
		require.ErrorContains(t, err, want, from)
		require.NotContains(t, err.Error(), "\n")
	}
}

// TestUntruths has images whose parts do not fit together. None may leave a
// name at the target.
func TestUntruths(t *testing.T) {
	type parts struct {
		l      *layout
		config map[string]any
		layers []ocispec.Descriptor
	}
	plain := tars(t, "a")[1]
	for name, c := range map[string]struct {
		change func(p *parts)
		want   string
	}{
		"layer changed": {func(p *parts) {
			p.l.write("blobs/sha256/"+p.layers[0].Digest.Encoded(), append(plain[:len(plain)-1:len(plain)-1], 1))
		}, "do not match its digest"},
		"header changed": {func(p *parts) {
			p.l.write("blobs/sha256/"+p.layers[0].Digest.Encoded(), append([]byte("X"), plain[1:]...))
		}, "do not match its digest"},
		"layer cut": {func(p *parts) {
			p.l.write("blobs/sha256/"+p.layers[0].Digest.Encoded(), plain[:700])
		}, "do not match its digest"},
		"layer longer": {func(p *parts) {
			p.l.write("blobs/sha256/"+p.layers[0].Digest.Encoded(), append(plain[:len(plain):len(plain)], 0, 0))
		}, "do not match its digest"},
		"layer absent": {func(p *parts) {
			require.NoError(t, os.Remove(p.l.dir+"/blobs/sha256/"+p.layers[0].Digest.Encoded()))
		}, "not found"},
		"wrong diff id": {func(p *parts) {
			p.config["rootfs"] = map[string]any{"type": "layers", "diff_ids": []digest.Digest{digest.FromString("x")}}
		}, "but the image's config says"},
		"too few diff ids": {func(p *parts) {
			p.config["rootfs"] = map[string]any{"type": "layers", "diff_ids": []digest.Digest{}}
		}, "1 layers, but its config 0 diff ids"},
		"no tar": {func(p *parts) {
			b := []byte(strings.Repeat("this is text, not a tar. ", 100))
			p.layers[0] = p.l.add(ocispec.MediaTypeImageLayer, b)
		}, p0},
		"unknown type": {func(p *parts) { p.layers[0].MediaType = "application/x-unknown" }, "only tar layers"},
		"encrypted":    {func(p *parts) { p.layers[0].MediaType += "+encrypted" }, "is encrypted"},
		"bad digest":   {func(p *parts) { p.layers[0].Digest = "sha256:../../x" }, "layer digest"},
		"bad features": {func(p *parts) { p.config["os.features"] = 5 }, "is not JSON"},
		"odd diff id": {func(p *parts) {
			p.config["rootfs"] = map[string]any{"type": "layers", "diff_ids": []string{"x"}}
		}, `diff id "x": invalid checksum digest format`},
		"no layers": {func(p *parts) { p.layers = nil }, "has no layers"},
	} {
		t.Run(name, func(t *testing.T) {
			p := &parts{l: newLayout(t)}
			p.layers = []ocispec.Descriptor{p.l.add(ocispec.MediaTypeImageLayer, plain)}
			p.config = map[string]any{"os": "linux", "architecture": "amd64", "rootfs": map[string]any{"type": "layers", "diff_ids": []digest.Digest{digest.FromBytes(plain)}}}
			c.change(p)
			p.l.tag(map[string]ocispec.Descriptor{"x": p.l.manifest(p.l.addJSON(ocispec.MediaTypeImageConfig, p.config), p.layers)})
			to := t.TempDir()
			_, err := run(t, "oci:"+p.l.dir, "oci:"+to, host)
			require.ErrorContains(t, err, c.want)
			require.NoFileExists(t, to+"/index.json")
		})
	}
}

// p0 is any message: what matters is that text is refused.
const p0 = ""

func TestDocumentsThatLie(t *testing.T) {
	l := newLayout(t)
	d := l.image(amd64, "a")
	l.write("blobs/sha256/"+d.Digest.Encoded(), []byte(`{"schemaVersion":2}`))
	l.tag(map[string]ocispec.Descriptor{"x": d})
	_, err := run(t, "oci:"+l.dir, "oci:"+t.TempDir(), host)
	require.ErrorContains(t, err, "has 19 bytes, its descriptor says")
	l.write("blobs/sha256/"+d.Digest.Encoded(), bytes.Repeat([]byte(" "), int(d.Size)))
	_, err = run(t, "oci:"+l.dir, "oci:"+t.TempDir(), host)
	require.ErrorContains(t, err, "does not match its digest")
	d.Size = 1 << 40
	l.tag(map[string]ocispec.Descriptor{"x": d})
	_, err = run(t, "oci:"+l.dir, "oci:"+t.TempDir(), host)
	require.ErrorContains(t, err, "at most")
	l.tag(map[string]ocispec.Descriptor{"x": l.add("text/plain", []byte("hello"))})
	_, err = run(t, "oci:"+l.dir, "oci:"+t.TempDir(), host)
	require.ErrorContains(t, err, "which is no image")
	// An index that holds itself would never end; digests forbid it, depth too.
	deep := l.image(amd64, "a")
	for range 5 {
		deep = l.addJSON(ocispec.MediaTypeImageIndex, ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{deep}})
	}
	l.tag(map[string]ocispec.Descriptor{"x": deep})
	_, err = run(t, "oci:"+l.dir, "oci:"+t.TempDir(), host)
	require.ErrorContains(t, err, "which is no image")
}

func TestRegistryInTrouble(t *testing.T) {
	reg := registry(t)
	l := newLayout(t)
	l.tag(map[string]ocispec.Descriptor{"one": l.image(amd64, "a")})
	_, err := run(t, reg.Addr()+"/absent:1", "oci:"+t.TempDir(), host)
	require.ErrorContains(t, err, "check the name and the tag")

	reg.Refuse(func(r *http.Request) int {
		if r.Method == http.MethodPost || r.Method == http.MethodPut {
			return http.StatusForbidden
		}
		return 0
	})
	_, err = run(t, "oci:"+l.dir, reg.Addr()+"/lazy:1", host)
	require.ErrorContains(t, err, "403")
	reg.Refuse(func(r *http.Request) int {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/") {
			return http.StatusForbidden
		}
		return 0
	})
	_, err = run(t, "oci:"+l.dir, reg.Addr()+"/lazy:1", host)
	require.ErrorContains(t, err, "403")
	reg.Refuse(nil)
	_, err = run(t, reg.Addr()+"/lazy:1", "oci:"+t.TempDir(), host)
	require.ErrorContains(t, err, "not found", "blobs without a name are no image")
}

// TestTokens counts the tokens that a whole conversion needs.
func TestTokens(t *testing.T) {
	reg := registry(t)
	tokens := &remotetest.Tokens{}
	server := httptest.NewServer(tokens.Wrap(reg))
	t.Cleanup(server.Close)
	addr := strings.TrimPrefix(server.URL, "http://")
	l := newLayout(t)
	l.tag(map[string]ocispec.Descriptor{"one": l.index()})
	opts := converter.Options{AllPlatforms: true, Parallel: 4}
	authorized := func(host string) ([]docker.RegistryHost, error) { // as remote.HostSet does, a new authorizer per call
		return docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost), docker.WithAuthorizer(docker.NewDockerAuthorizer()))(host)
	}
	for _, way := range [][2]string{{"oci:" + l.dir, addr + "/lazy:1"}, {addr + "/lazy:1", addr + "/copy:1"}} {
		src, err := converter.ParseSource(way[0], authorized)
		require.NoError(t, err)
		dst, err := converter.ParseTarget(way[1], authorized)
		require.NoError(t, err)
		_, err = converter.Image(t.Context(), src, dst, opts)
		require.NoError(t, err)
	}
	require.LessOrEqual(t, tokens.Issued(), 10, "a few for each repository and each right, not one for each request")
}
