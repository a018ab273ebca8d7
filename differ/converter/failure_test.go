package converter_test

import (
	"crypto/rand"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// refusing serves a registry that answers some requests with an error document.
func refusing(t *testing.T, reg http.Handler, when func(*http.Request) bool, status int, body string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if when(r) {
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
			return
		}
		reg.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func TestFailuresAreOneSentenceEach(t *testing.T) {
	reg := registry(t)
	l := newLayout(t)
	l.tag(map[string]ocispec.Descriptor{"one": l.image(amd64, "a")})
	from := "oci:" + l.dir
	puts := func(r *http.Request) bool { return r.Method == http.MethodPut || r.Method == http.MethodPost }
	manifests := func(r *http.Request) bool { return puts(r) && strings.Contains(r.URL.Path, "/manifests/") }
	bodies := func(r *http.Request) bool {
		return r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/blobs/")
	}
	all := func(*http.Request) bool { return true }
	denied := `{"errors":[{"code":"DENIED","message":"quota of team\nexceeded"}]}`
	for _, c := range []struct {
		name   string
		when   func(*http.Request) bool
		status int
		kind   error
		want   string
	}{
		{"upload refused", puts, http.StatusForbidden, converter.ErrRefused, "refuses the push of lazy with 403 Forbidden: quota of team exceeded"},
		{"blob refused", bodies, http.StatusRequestEntityTooLarge, converter.ErrRefused, "refuses the push of lazy with 413"},
		{"manifest refused", manifests, http.StatusBadRequest, converter.ErrRefused, "refuses the push of lazy with 400"},
		{"disk of the registry", bodies, http.StatusInsufficientStorage, converter.ErrRefused, "refuses the push of lazy with 507"},
		{"credentials", all, http.StatusUnauthorized, converter.ErrCredentials, "does not accept the credentials for a push of lazy; log in with \"docker login"},
	} {
		t.Run(c.name, func(t *testing.T) {
			addr := refusing(t, registry(t), c.when, c.status, denied)
			_, err := run(t, from, addr+"/lazy:1", host)
			require.ErrorIs(t, err, c.kind)
			require.ErrorContains(t, err, c.want)
			require.NotContains(t, err.Error(), "\n")
		})
	}
	addr := refusing(t, reg, all, http.StatusUnauthorized, "")
	_, err := run(t, addr+"/plain:1", "oci:"+t.TempDir(), host)
	require.ErrorIs(t, err, converter.ErrCredentials)
	require.ErrorContains(t, err, "for a pull of plain")

	_, err = run(t, from, "oci:"+t.TempDir(), converter.Options{Platforms: []ocispec.Platform{arm64}})
	require.ErrorIs(t, err, converter.ErrPlatform)
	require.ErrorContains(t, err, "has no image for linux/arm64/v8; it has linux/amd64")
	_, err = run(t, from, "oci:"+t.TempDir(), converter.Options{Layer: host.Layer, Platforms: host.Platforms, KeepDir: "/dev/null/x"})
	require.ErrorContains(t, err, "/dev/null")
}

// TestFullDisk gives each of the places that take data a disk that is too small.
func TestFullDisk(t *testing.T) {
	testenv.RequireRoot(t)
	l := newLayout(t)
	noise := make([]byte, 400<<10)
	_, err := rand.Read(noise)
	require.NoError(t, err)
	b := tarOf(t, map[string]string{"usr/noise": string(noise)})
	l.tag(map[string]ocispec.Descriptor{"one": l.manifest(
		l.addJSON(ocispec.MediaTypeImageConfig, map[string]any{
			"architecture": "amd64", "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": []digest.Digest{digest.FromBytes(b)}},
		}), []ocispec.Descriptor{l.add(ocispec.MediaTypeImageLayer, b)})})
	small := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", small, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(small, 0)) })
	for name, c := range map[string]struct {
		to   string
		opts func(*converter.Options)
	}{
		"spool":         {"oci:" + t.TempDir(), func(o *converter.Options) { o.WorkDir = small }},
		"kept layers":   {"oci:" + t.TempDir(), func(o *converter.Options) { o.KeepDir = filepath.Join(small, "keep") }},
		"target":        {"oci:" + filepath.Join(small, "layout"), func(*converter.Options) {}},
		"target's file": {"oci-archive:" + filepath.Join(small, "x.tar"), func(*converter.Options) {}},
	} {
		t.Run(name, func(t *testing.T) {
			opts := host
			opts.WorkDir = t.TempDir()
			c.opts(&opts)
			src, err := converter.ParseSource("oci:"+l.dir, hosts)
			require.NoError(t, err)
			dst, err := converter.ParseTarget(c.to, hosts)
			require.NoError(t, err)
			_, err = converter.Image(t.Context(), src, dst, opts)
			require.NoError(t, dst.Close())
			require.ErrorIs(t, err, converter.ErrNoSpace)
			require.Contains(t, err.Error(), "no space left on the disk that holds "+small)
			require.NotContains(t, err.Error(), "\n")
			require.Equal(t, strings.HasPrefix(opts.WorkDir, small), strings.Contains(err.Error(), "--work-dir"), err.Error())
			left, err := os.ReadDir(small)
			require.NoError(t, err)
			half, err := filepath.Glob(filepath.Join(small, "layout/ingest/*"))
			require.NoError(t, err)
			require.Empty(t, half, "what was begun takes no space")
			for _, n := range left {
				require.NoError(t, os.RemoveAll(filepath.Join(small, n.Name())))
			}
		})
	}
}
