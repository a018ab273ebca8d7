package converter_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/differ/converter"
)

// wholeLayers opens native layers by unpacking all of them.
func wholeLayers(t *testing.T, at string) converter.LayerOpener {
	return func(ctx context.Context, d ocispec.Descriptor) (*converter.ImageData, error) {
		src, err := converter.ParseSource(at, hosts)
		if err != nil {
			return nil, err
		}
		defer src.Close()
		return converter.OpenWhole(ctx, src, d, t.TempDir())
	}
}

func export(t *testing.T, from, to string, opts converter.ExportOptions) (converter.Result, error) {
	t.Helper()
	src, err := converter.ParseSource(from, hosts)
	require.NoError(t, err)
	dst, err := converter.ParseTarget(to, hosts)
	require.NoError(t, err)
	if opts.Open == nil {
		opts.Open = wholeLayers(t, from)
	}
	opts.WorkDir = t.TempDir()
	res, err := converter.Export(t.Context(), src, dst, opts)
	require.NoError(t, src.Close())
	require.NoError(t, dst.Close())
	return res, err
}

// contents lists the files of a tar with what they hold.
func contents(t *testing.T, tarball []byte) map[string]string {
	t.Helper()
	out := map[string]string{}
	r := tar.NewReader(bytes.NewReader(tarball))
	for {
		hdr, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		require.NoError(t, err)
		b, err := io.ReadAll(r)
		require.NoError(t, err)
		out[hdr.Name] = string(b)
	}
}

func TestExportGivesTheImageBack(t *testing.T) {
	reg := registry(t)
	l := newLayout(t)
	l.tag(map[string]ocispec.Descriptor{"x": l.built()})
	lazy := reg.Addr() + "/lazy:1"
	converted, err := run(t, "oci:"+l.dir, lazy, converter.Options{AllPlatforms: true})
	require.NoError(t, err)
	for _, c := range []struct {
		compression converter.Compression
		mediaType   string
		unpack      func([]byte) ([]byte, error)
	}{
		{converter.Gzip, ocispec.MediaTypeImageLayerGzip, func(b []byte) ([]byte, error) {
			r, err := gzip.NewReader(bytes.NewReader(b))
			require.NoError(t, err)
			return io.ReadAll(r)
		}},
		{converter.ZstdTar, ocispec.MediaTypeImageLayerZstd, func(b []byte) ([]byte, error) {
			r, err := zstd.NewReader(nil)
			require.NoError(t, err)
			defer r.Close()
			return r.DecodeAll(b, nil)
		}},
		{converter.Uncompressed, ocispec.MediaTypeImageLayer, func(b []byte) ([]byte, error) { return b, nil }},
	} {
		t.Run(c.compression.String(), func(t *testing.T) {
			to := "oci:" + t.TempDir()
			res, err := export(t, lazy, to, converter.ExportOptions{AllPlatforms: true, Compression: c.compression})
			require.NoError(t, err)
			again, err := export(t, lazy, "oci:"+t.TempDir(), converter.ExportOptions{AllPlatforms: true, Compression: c.compression, Parallel: 1})
			require.NoError(t, err)
			require.Equal(t, res.Digest, again.Digest)
			requireWhole(t, to, root(t, to))
			require.Len(t, res.Attestations, 2)
			var idx ocispec.Index
			fetchJSON(t, to, root(t, to), &idx)
			require.Empty(t, idx.Manifests[0].Platform.OSFeatures)
			var m ocispec.Manifest
			fetchJSON(t, to, idx.Manifests[0], &m)
			var config struct {
				ocispec.Image
				Moby int `json:"moby.thing"`
			}
			fetchJSON(t, to, m.Config, &config)
			require.Empty(t, config.OSFeatures)
			require.Equal(t, 7, config.Moby)
			require.Len(t, config.History, 2)
			for i, want := range tars(t, "a") {
				require.Equal(t, c.mediaType, m.Layers[i].MediaType)
				require.Empty(t, m.Layers[i].Annotations)
				tarball, err := c.unpack(fetch(t, to, m.Layers[i]))
				require.NoError(t, err)
				require.Equal(t, config.RootFS.DiffIDs[i], digest.FromBytes(tarball))
				require.Equal(t, contents(t, want), contents(t, tarball))
			}
			// And there again: the content decides the layers.
			third, err := run(t, to, "oci:"+t.TempDir(), converter.Options{AllPlatforms: true})
			require.NoError(t, err)
			for i, img := range third.Images {
				for k, lr := range img.Layers {
					require.Equal(t, converted.Images[i].Layers[k].Digest, lr.Digest)
					require.Equal(t, converted.Images[i].Layers[k].DiffID, lr.DiffID)
				}
			}
		})
	}
}

func TestExportOfOnePlatformSaysWhatItLeavesOut(t *testing.T) {
	l := newLayout(t)
	l.tag(map[string]ocispec.Descriptor{"x": l.built()})
	res, err := export(t, "oci:"+l.dir, "oci:"+t.TempDir(), converter.ExportOptions{Platforms: host.Platforms})
	require.NoError(t, err)
	require.Len(t, res.Warnings, 1)
	require.Contains(t, res.Warnings[0], "--all-platforms")
}

func TestExportCarriesTarsOver(t *testing.T) {
	l := newLayout(t)
	l.tag(map[string]ocispec.Descriptor{"x": l.image(amd64, "a")})
	from, to := "oci:"+l.dir, "oci:"+t.TempDir()
	res, err := export(t, from, to, converter.ExportOptions{Platforms: host.Platforms})
	require.NoError(t, err)
	var was, is ocispec.Manifest
	fetchJSON(t, from, root(t, from), &was)
	fetchJSON(t, to, root(t, to), &is)
	require.Equal(t, was.Layers, is.Layers)
	for _, lr := range res.Images[0].Layers {
		require.True(t, lr.Reused)
	}
}

func TestExportFails(t *testing.T) {
	l := newLayout(t)
	l.tag(map[string]ocispec.Descriptor{"x": l.image(amd64, "a")})
	lazy := "oci:" + t.TempDir()
	_, err := run(t, "oci:"+l.dir, lazy, converter.Options{Platforms: host.Platforms, Layer: differ.Config{Form: differ.Raw}})
	require.NoError(t, err)
	broken := errors.New("broken")
	to := t.TempDir()
	for _, open := range []converter.LayerOpener{
		func(context.Context, ocispec.Descriptor) (*converter.ImageData, error) { return nil, broken },
		func(ctx context.Context, d ocispec.Descriptor) (*converter.ImageData, error) {
			data, err := wholeLayers(t, lazy)(ctx, d)
			if err == nil { // or another layer has failed already
				data.Data = unreadable{broken}
			}
			return data, err
		},
	} {
		_, err = export(t, lazy, "oci:"+to, converter.ExportOptions{Platforms: host.Platforms, Open: open})
		require.ErrorIs(t, err, broken)
		require.NoFileExists(t, to+"/index.json")
	}
	b, err := json.Marshal([]string{converter.Gzip.String(), converter.ZstdTar.String(), converter.Uncompressed.String()})
	require.NoError(t, err)
	require.Equal(t, `["gzip","zstd","none"]`, string(b))
}

type unreadable struct{ err error }

func (u unreadable) ReadAt([]byte, int64) (int, error) { return 0, u.err }
