package converter_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/differ/converter"
)

// entry is d as an index names it for a platform, or for none.
func entry(p *ocispec.Platform, d ocispec.Descriptor) ocispec.Descriptor {
	d.Platform = p
	return d
}

func (l *layout) indexOf(entries ...ocispec.Descriptor) ocispec.Descriptor {
	return l.addJSON(ocispec.MediaTypeImageIndex, ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: entries})
}

// TestNamedPlatformIsNoOther has an index of architectures that some processors of
// another name can run, too. Who names one wants that one.
func TestNamedPlatformIsNoOther(t *testing.T) {
	v7 := ocispec.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}
	i386 := ocispec.Platform{OS: "linux", Architecture: "386"}
	l := newLayout(t)
	l.tag(map[string]ocispec.Descriptor{
		"index": l.indexOf(entry(&v7, l.image(v7, "a")), entry(&i386, l.image(i386, "b"))),
		"alone": l.image(v7, "a"),
	})
	for _, tc := range []struct {
		tag  string
		p    ocispec.Platform
		want string // empty means that there is none
	}{
		{"index", v7, "linux/arm/v7"},
		{"index", ocispec.Platform{OS: "linux", Architecture: "arm"}, "linux/arm/v7"}, // which is its usual variant
		{"index", i386, "linux/386"},
		{"index", arm64, ""},
		{"index", ocispec.Platform{OS: "linux", Architecture: "arm", Variant: "v8"}, ""},
		{"index", amd64, ""},
		{"alone", arm64, ""},
		{"alone", v7, "linux/arm/v7"},
	} {
		from := "oci:" + l.dir + ":" + tc.tag
		res, err := run(t, from, "oci:"+t.TempDir(), converter.Options{Platforms: []ocispec.Platform{tc.p}})
		src, serr := converter.ParseSource(from, hosts)
		require.NoError(t, serr)
		picked, perr := converter.Pick(t.Context(), src, &tc.p)
		if tc.want == "" {
			require.ErrorIs(t, err, converter.ErrPlatform)
			require.ErrorIs(t, perr, converter.ErrPlatform)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, tc.want, res.Images[0].Platform)
		require.NoError(t, perr)
		require.Equal(t, tc.p.Architecture, picked.Config.Architecture)
	}
	_, err := run(t, "oci:"+l.dir+":index", "oci:"+t.TempDir(), converter.Options{Platforms: []ocispec.Platform{arm64, v7}})
	require.ErrorIs(t, err, converter.ErrPlatform)
}

// TestIndexWithSomethingElse has an artifact beside the images, which only its config
// tells apart.
func TestIndexWithSomethingElse(t *testing.T) {
	l := newLayout(t)
	chart := l.manifest(l.add("application/vnd.oci.empty.v1+json", []byte("{}")), []ocispec.Descriptor{l.add("text/plain", []byte("x"))})
	l.tag(map[string]ocispec.Descriptor{
		"mixed": l.indexOf(chart, entry(&amd64, l.image(amd64, "a"))), "chart": chart, "charts": l.indexOf(chart),
	})
	for _, opts := range []converter.Options{host, {AllPlatforms: true}, {AllPlatforms: true, Output: converter.Index}} {
		res, err := run(t, "oci:"+l.dir+":mixed", "oci:"+t.TempDir(), opts)
		require.NoError(t, err)
		require.Len(t, res.Images, 1)
		if opts.AllPlatforms {
			require.Equal(t, []string{chart.Digest.String()}, res.Skipped)
		}
	}
	_, err := run(t, "oci:"+l.dir+":mixed", "oci:"+t.TempDir(), converter.Options{Platforms: []ocispec.Platform{arm64}})
	require.ErrorIs(t, err, converter.ErrPlatform)
	_, err = run(t, "oci:"+l.dir+":charts", "oci:"+t.TempDir(), host)
	require.ErrorContains(t, err, "no image for linux/amd64; it has none at all")
	_, err = run(t, "oci:"+l.dir+":charts", "oci:"+t.TempDir(), converter.Options{AllPlatforms: true})
	require.ErrorContains(t, err, "holds no Linux image")
	_, err = run(t, "oci:"+l.dir+":chart", "oci:"+t.TempDir(), host)
	require.ErrorContains(t, err, "not an image")
}

// TestEntriesOfAnIndexAreKept has entries that say more than their configs.
func TestEntriesOfAnIndexAreKept(t *testing.T) {
	says := ocispec.Platform{OS: "linux", Architecture: "arm64", Variant: "v8", OSVersion: "6", OSFeatures: []string{"sve"}}
	l := newLayout(t)
	old := entry(&says, l.image(ocispec.Platform{OS: "linux", Architecture: "arm64"}, "a"))
	old.Annotations = map[string]string{"org.example": "kept"}
	l.tag(map[string]ocispec.Descriptor{"x": l.indexOf(old, entry(&amd64, l.image(amd64, "b")))})
	for output, features := range map[converter.Output][]string{converter.Plain: {"sve"}, converter.Index: {"sve", "erofs"}} {
		to := "oci:" + t.TempDir()
		_, err := run(t, "oci:"+l.dir, to, converter.Options{AllPlatforms: true, Output: output})
		require.NoError(t, err)
		var idx ocispec.Index
		fetchJSON(t, to, root(t, to), &idx)
		native := idx.Manifests[0]
		if output == converter.Index {
			require.Equal(t, old, native, "as it was")
			native = idx.Manifests[2]
		}
		want := says
		want.OSFeatures = features
		require.Equal(t, &want, native.Platform)
		require.Equal(t, old.Annotations, native.Annotations)
	}
}

// TestNamesOfOneLayout writes several images into one layout at once.
func TestNamesOfOneLayout(t *testing.T) {
	l := newLayout(t)
	l.tag(map[string]ocispec.Descriptor{"one": l.image(amd64, "a")})
	for range 5 {
		to := t.TempDir()
		errs := make([]error, 4)
		var writers sync.WaitGroup
		for i := range errs {
			writers.Go(func() {
				src, err := converter.ParseSource("oci:"+l.dir, hosts)
				dst, derr := converter.ParseTarget(fmt.Sprintf("oci:%s:tag%d", to, i), hosts)
				if errs[i] = errors.Join(err, derr); errs[i] == nil {
					_, err := converter.Image(t.Context(), src, dst, host)
					errs[i] = errors.Join(err, dst.Close(), src.Close())
				}
			})
		}
		writers.Wait()
		require.NoError(t, errors.Join(errs...))
		for i := range errs {
			root(t, fmt.Sprintf("oci:%s:tag%d", to, i))
		}
	}
}

// TestCarriedLayerIsNotWhatItSays damages a layer that is copied, not converted: the
// source is to blame, whatever the target says about it.
func TestCarriedLayerIsNotWhatItSays(t *testing.T) {
	l, native := newLayout(t), newLayout(t)
	l.tag(map[string]ocispec.Descriptor{"x": l.image(amd64, "a")})
	from := "oci:" + native.dir
	_, err := run(t, "oci:"+l.dir, from, host)
	require.NoError(t, err)
	var m ocispec.Manifest
	fetchJSON(t, from, root(t, from), &m)
	path := filepath.Join(native.dir, "blobs/sha256", m.Layers[0].Digest.Encoded())
	good, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.Chmod(path, 0o600))
	for _, bad := range [][]byte{append(bytes.Clone(good), 1), good[:len(good)-1], append([]byte{1}, good[1:]...)} {
		require.NoError(t, os.WriteFile(path, bad, 0o600))
		for _, to := range []string{"oci:" + t.TempDir(), registry(t).Addr() + "/x:1"} {
			_, err = run(t, from, to, host)
			require.ErrorContains(t, err, "the bytes that came do not match its digest")
			require.NotContains(t, err.Error(), "ingest")
		}
	}
}
