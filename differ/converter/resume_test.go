package converter_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/differ/converter"
)

// kept lists what a directory of finished layers holds of one kind.
func kept(t *testing.T, dir, ext string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*."+ext))
	require.NoError(t, err)
	return names
}

func resumed(res converter.Result) (n int) {
	for _, img := range res.Images {
		for _, l := range img.Layers {
			if l.Resumed {
				n++
			}
		}
	}
	return n
}

// interrupted converts an image until it only lacks its name.
func interrupted(t *testing.T, to string, reg interface {
	Refuse(func(*http.Request) int)
}) (from string, opts converter.Options) {
	t.Helper()
	l := newLayout(t)
	l.tag(map[string]ocispec.Descriptor{"one": l.image(amd64, "a")})
	opts = host
	opts.KeepDir = t.TempDir()
	reg.Refuse(func(r *http.Request) int {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/") {
			return http.StatusInsufficientStorage
		}
		return 0
	})
	_, err := run(t, "oci:"+l.dir, to, opts)
	require.ErrorIs(t, err, converter.ErrRefused)
	reg.Refuse(nil)
	return "oci:" + l.dir, opts
}

func TestResumeConvertsNothingAgain(t *testing.T) {
	reg := registry(t)
	at := reg.Addr() + "/lazy:1"
	from, opts := interrupted(t, at, reg)
	require.Len(t, kept(t, opts.KeepDir, "blob"), 3)

	// The source is gone but for its documents: what is finished needs none of it.
	dir := strings.TrimPrefix(from, "oci:")
	var m ocispec.Manifest
	fetchJSON(t, from, root(t, from), &m)
	for _, l := range m.Layers {
		require.NoError(t, os.Remove(filepath.Join(dir, "blobs/sha256", l.Digest.Encoded())))
	}
	res, err := run(t, from, at, opts)
	require.NoError(t, err)
	require.Equal(t, 3, resumed(res))
	checkImage(t, at, root(t, at), differ.Zstd)
	require.Empty(t, kept(t, opts.KeepDir, "blob"), "the target has them now")
	require.Len(t, kept(t, opts.KeepDir, "json"), 3)

	// The same target needs no bytes, another repository there mounts them.
	for _, to := range []string{at, reg.Addr() + "/other/repo:2"} {
		reg.Reset()
		again, err := run(t, from, to, opts)
		require.NoError(t, err)
		require.Equal(t, res.Digest, again.Digest)
		require.Equal(t, 3, resumed(again))
		for _, l := range again.Images[0].Layers {
			require.True(t, l.Existed)
		}
		uploads := 0
		for _, r := range reg.Log() {
			if r.Method == http.MethodPut && strings.Contains(r.Path, "/blobs/uploads/") {
				uploads++
			}
		}
		require.LessOrEqual(t, uploads, 1, "the config at most")
		requireWhole(t, to, root(t, to))
	}
	// Where the bytes are nowhere, the layers must be converted, from what is gone.
	_, err = run(t, from, "oci:"+t.TempDir(), opts)
	require.ErrorContains(t, err, "not found")
}

func TestResumeFindsDamage(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, dir string){
		"blob changed": func(t *testing.T, dir string) {
			for _, f := range kept(t, dir, "blob") {
				b, err := os.ReadFile(f)
				require.NoError(t, err)
				b[len(b)/2] ^= 1
				require.NoError(t, os.WriteFile(f, b, 0o600))
			}
		},
		"blob cut": func(t *testing.T, dir string) {
			for _, f := range kept(t, dir, "blob") {
				require.NoError(t, os.Truncate(f, 100))
			}
		},
		"metadata changed": func(t *testing.T, dir string) {
			for _, f := range kept(t, dir, "meta") {
				require.NoError(t, os.WriteFile(f, []byte("x"), 0o600))
			}
		},
		"record torn": func(t *testing.T, dir string) {
			for _, f := range kept(t, dir, "json") {
				require.NoError(t, os.Truncate(f, 50))
			}
		},
		"record gone": func(t *testing.T, dir string) {
			for _, f := range kept(t, dir, "json") {
				require.NoError(t, os.Remove(f))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			reg := registry(t)
			from, opts := interrupted(t, reg.Addr()+"/lazy:1", reg)
			spoil(t, opts.KeepDir)
			to := "oci:" + t.TempDir()
			res, err := run(t, from, to, opts)
			require.NoError(t, err)
			require.Zero(t, resumed(res))
			checkImage(t, to, root(t, to), differ.Zstd)
			requireWhole(t, to, root(t, to))
		})
	}
}

func TestResumeIsBoundToTheOptions(t *testing.T) {
	reg := registry(t)
	from, opts := interrupted(t, reg.Addr()+"/lazy:1", reg)
	for name, change := range map[string]func(*differ.Config){
		"form": func(c *differ.Config) { c.Form = differ.Raw }, "chunk size": func(c *differ.Config) { c.ChunkSize = 1 << 20 },
		"level": func(c *differ.Config) { c.Level = 9 }, "list": func(c *differ.Config) { c.First = []string{"usr/app"} },
	} {
		other := opts
		change(&other.Layer)
		res, err := run(t, from, "oci:"+t.TempDir(), other)
		require.NoError(t, err, name)
		require.Zero(t, resumed(res), name)
	}
	same := opts
	same.Layer = differ.Config{ChunkSize: differ.DefaultChunkSize, Level: differ.DefaultLevel, Workers: 1}
	res, err := run(t, from, "oci:"+t.TempDir(), same)
	require.NoError(t, err)
	require.Equal(t, 3, resumed(res))
}

func TestKeptLayersGoAfterAWhile(t *testing.T) {
	reg := registry(t)
	from, opts := interrupted(t, reg.Addr()+"/lazy:1", reg)
	long := time.Now().Add(-30 * 24 * time.Hour)
	for _, f := range append(kept(t, opts.KeepDir, "blob"), kept(t, opts.KeepDir, "meta")...) {
		require.NoError(t, os.Chtimes(f, long, long))
	}
	records := kept(t, opts.KeepDir, "json")
	require.NoError(t, os.Chtimes(records[0], long, long))
	res, err := run(t, from, "oci:"+t.TempDir(), opts)
	require.NoError(t, err)
	require.Equal(t, 2, resumed(res), "one was not used for too long; the others' files are as old, but their records are not")

	for _, f := range kept(t, opts.KeepDir, "json") {
		require.NoError(t, os.Chtimes(f, long, long))
	}
	for _, f := range kept(t, opts.KeepDir, "meta") {
		require.NoError(t, os.Chtimes(f, long, long))
	}
	other := newLayout(t)
	other.tag(map[string]ocispec.Descriptor{"one": other.image(arm64, "z")})
	_, err = run(t, "oci:"+other.dir, "oci:"+t.TempDir(), converter.Options{Platforms: []ocispec.Platform{arm64}, KeepDir: opts.KeepDir})
	require.NoError(t, err)
	require.Len(t, kept(t, opts.KeepDir, "json"), 3, "only those of the last run")
	require.Len(t, kept(t, opts.KeepDir, "meta"), 3)
}
