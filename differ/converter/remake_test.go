package converter_test

import (
	"context"
	"errors"
	"io"
	"testing"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// bare converts an image and drops what its manifest says of the layers, as BuildKit
// does with a base image. change, which may be nil, spoils their blobs.
func bare(t *testing.T, form differ.Form, change func(layer int, blob []byte)) (at string, m ocispec.Manifest) {
	t.Helper()
	l, native := newLayout(t), newLayout(t)
	l.tag(map[string]ocispec.Descriptor{"x": l.image(amd64, "a")})
	opts := host
	opts.Layer.Form = form
	at = "oci:" + native.dir
	_, err := run(t, "oci:"+l.dir, at, opts)
	require.NoError(t, err)
	fetchJSON(t, at, root(t, at), &m)
	for i, d := range m.Layers {
		blob := fetch(t, at, d)
		if change != nil {
			change(i, blob)
		}
		m.Layers[i] = native.add(d.MediaType, blob)
		m.Layers[i].Annotations = map[string]string{"org.example": "kept"}
	}
	native.tag(map[string]ocispec.Descriptor{"latest": native.manifest(m.Config, m.Layers)})
	return at, m
}

func TestNativeLayersWithoutAnIndexAreMadeAnew(t *testing.T) {
	for _, form := range []differ.Form{differ.Zstd, differ.Raw} {
		from, old := bare(t, form, nil)
		before, err := export(t, from, "oci:"+t.TempDir(), converter.ExportOptions{})
		require.NoError(t, err)

		opts := host
		opts.KeepDir = t.TempDir()
		to := "oci:" + t.TempDir()
		res, err := run(t, from, to, opts)
		require.NoError(t, err)
		again, err := run(t, from, "oci:"+t.TempDir(), opts)
		require.NoError(t, err)
		require.Equal(t, res.Digest, again.Digest)
		checkImage(t, to, root(t, to), differ.Zstd)
		var m ocispec.Manifest
		fetchJSON(t, to, root(t, to), &m)
		for i, lr := range res.Images[0].Layers {
			require.False(t, lr.Reused)
			require.Equal(t, old.Layers[i].Digest, lr.Source)
			require.Equal(t, old.Layers[i].Size, lr.SourceSize)
			require.NotEmpty(t, m.Layers[i].Annotations[chunk.AnnotationIndexRange])
			require.Equal(t, "kept", m.Layers[i].Annotations["org.example"])
			if form == differ.Zstd {
				require.Equal(t, lr.Source, lr.Digest, "the very layer that it was")
			}
		}
		after, err := export(t, to, "oci:"+t.TempDir(), converter.ExportOptions{})
		require.NoError(t, err)
		for i, lr := range after.Images[0].Layers {
			require.Equal(t, before.Images[0].Layers[i].Digest, lr.Digest, "the same content")
		}

		// Now they have one.
		third, err := run(t, to, "oci:"+t.TempDir(), opts)
		require.NoError(t, err)
		require.Equal(t, res.Digest, third.Digest)
		for _, lr := range third.Images[0].Layers {
			require.True(t, lr.Reused)
		}
	}
}

// TestWhatTheParserRefusesIsCarriedOver: containerd may still mount it.
func TestWhatTheParserRefusesIsCarriedOver(t *testing.T) {
	for what, change := range map[string]func(super []byte){
		"feature_incompat that nobody knows": func(super []byte) { super[80] |= 0x40 },
		"blocks of 64 KiB":                   func(super []byte) { super[12] = 16 },
	} {
		from, old := bare(t, differ.Raw, func(layer int, blob []byte) {
			if layer == 1 {
				change(blob[1024:])
			}
		})
		res, err := run(t, from, "oci:"+t.TempDir(), host)
		require.NoError(t, err, what)
		require.Len(t, res.Warnings, 1)
		require.Contains(t, res.Warnings[0], old.Layers[1].Digest.String()+" has no chunk index and cannot be given one")
		for i, lr := range res.Images[0].Layers {
			require.Equal(t, i == 1, lr.Reused)
		}
	}
}

// broken is a source one blob of which cannot be read to its end.
type broken struct {
	converter.Source
	blob digest.Digest
	at   int64
	err  error
}

func (b *broken) Open(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	rc, err := b.Source.Open(ctx, d)
	if err != nil || d.Digest != b.blob {
		return rc, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(io.LimitReader(rc, b.at), failing{b.err}), rc}, nil
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// TestRemakeEnds when its input fails, when that has other bytes, and when the
// conversion fails: goroutines and files that stayed would be seen.
func TestRemakeEnds(t *testing.T) {
	for _, form := range []differ.Form{differ.Zstd, differ.Raw} {
		from, old := bare(t, form, nil)
		bad := errors.New("input/output error")
		for _, at := range []int64{0, 100, 1100, old.Layers[0].Size - 1} {
			src, err := converter.ParseSource(from, hosts)
			require.NoError(t, err)
			dst, err := converter.ParseTarget("oci:"+t.TempDir(), hosts)
			require.NoError(t, err)
			_, err = converter.Image(t.Context(), &broken{src, old.Layers[0].Digest, at, bad}, dst, host)
			require.ErrorIs(t, err, bad, "%d", at)
			require.NoError(t, errors.Join(src.Close(), dst.Close()))
		}
		opts := host
		opts.Parallel = 1
		opts.Layer.SpoolDir = t.TempDir() + "/absent"
		_, err := run(t, from, "oci:"+t.TempDir(), opts)
		require.ErrorContains(t, err, "absent")
	}
}

// TestOpenWholeRefuses what is not an image, is not all of one, or is another one.
func TestOpenWholeRefuses(t *testing.T) {
	at, m := bare(t, differ.Raw, nil)
	image := fetch(t, at, m.Layers[0])
	l := newLayout(t)
	open := func(mediaType string, b []byte, size int64) error {
		d := l.add(mediaType, b)
		d.Size = size
		src, err := converter.ParseSource("oci:"+l.dir, hosts)
		require.NoError(t, err)
		defer src.Close()
		data, err := converter.OpenWhole(t.Context(), src, d, t.TempDir())
		if err == nil {
			require.NoError(t, data.Close())
		}
		return err
	}
	require.NoError(t, open(chunk.MediaTypeLayer, image, int64(len(image))))
	require.ErrorContains(t, open(chunk.MediaTypeLayer, image, int64(len(image))-1), "do not match its digest")
	require.ErrorContains(t, open(chunk.MediaTypeLayer, image, int64(len(image))+1), "do not match its digest")
	require.ErrorContains(t, open(chunk.MediaTypeLayer, image[:1000], 1000), "truncated")
	require.ErrorContains(t, open(chunk.MediaTypeLayer, image[:len(image)/2], int64(len(image)/2)), "bytes long, only")
	require.ErrorContains(t, open(chunk.MediaTypeLayer, make([]byte, 9000), 9000), "not an EROFS image")
	require.Error(t, open(chunk.MediaTypeLayerZstd, image, int64(len(image))))
	bomb := zstded(t, append(image[:len(image):len(image)], make([]byte, 80<<20)...))
	require.ErrorContains(t, open(chunk.MediaTypeLayerZstd, bomb, int64(len(bomb))), "far more comes")
}
