package converter_test

import (
	"context"
	"errors"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// bare converts an image and drops what its manifest says of the layers, as BuildKit
// does with a base image.
func bare(t *testing.T) (at string, m ocispec.Manifest) {
	t.Helper()
	l, native := newLayout(t), newLayout(t)
	l.tag(map[string]ocispec.Descriptor{"x": l.image(amd64, "a")})
	_, err := run(t, "oci:"+l.dir, "oci:"+native.dir, host)
	require.NoError(t, err)
	fetchJSON(t, "oci:"+native.dir, root(t, "oci:"+native.dir), &m)
	for i := range m.Layers {
		m.Layers[i].Annotations = map[string]string{"org.example": "kept"}
	}
	native.tag(map[string]ocispec.Descriptor{"latest": native.manifest(m.Config, m.Layers)})
	return "oci:" + native.dir, m
}

func TestNativeLayersWithoutAnIndexAreMadeAnew(t *testing.T) {
	from, old := bare(t)
	before, err := export(t, from, "oci:"+t.TempDir(), converter.ExportOptions{})
	require.NoError(t, err)

	carried, err := run(t, from, "oci:"+t.TempDir(), host)
	require.NoError(t, err)
	for _, lr := range carried.Images[0].Layers {
		require.True(t, lr.Reused, "nothing opens them")
	}

	opts := host
	opts.Open, opts.KeepDir = wholeLayers(t, from), t.TempDir()
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
	}
	after, err := export(t, to, "oci:"+t.TempDir(), converter.ExportOptions{})
	require.NoError(t, err)
	for i, lr := range after.Images[0].Layers {
		require.Equal(t, before.Images[0].Layers[i].Digest, lr.Digest, "the same content")
	}

	// Now they have one.
	opts.Open = func(context.Context, ocispec.Descriptor) (*converter.ImageData, error) { panic("not needed") }
	third, err := run(t, to, "oci:"+t.TempDir(), opts)
	require.NoError(t, err)
	require.Equal(t, res.Digest, third.Digest)
}

// TestWhatTheParserRefusesIsCarriedOver: containerd may still mount it.
func TestWhatTheParserRefusesIsCarriedOver(t *testing.T) {
	from, old := bare(t)
	opts := host
	whole := wholeLayers(t, from)
	opts.Open = func(ctx context.Context, d ocispec.Descriptor) (*converter.ImageData, error) {
		if d.Digest == old.Layers[1].Digest {
			return nil, &erofs.RefusedError{Rule: "compression", Detail: "file data is compressed"}
		}
		return whole(ctx, d)
	}
	res, err := run(t, from, "oci:"+t.TempDir(), opts)
	require.NoError(t, err)
	require.Len(t, res.Warnings, 1)
	require.Contains(t, res.Warnings[0], old.Layers[1].Digest.String()+" has no chunk index and cannot be given one")
	require.Contains(t, res.Warnings[0], "file data is compressed")
	for i, lr := range res.Images[0].Layers {
		require.Equal(t, i == 1, lr.Reused)
	}
}

// spoiled is image data that cannot be read behind its metadata.
type spoiled struct{ err error }

func (s spoiled) ReadAt([]byte, int64) (int, error) { return 0, s.err }

// TestRemakeEnds when its input fails, when that cannot be opened, and when the
// conversion does: goroutines that stayed would be seen.
func TestRemakeEnds(t *testing.T) {
	from, _ := bare(t)
	bad := errors.New("input/output error")
	whole := wholeLayers(t, from)
	opts := host
	opts.Open = func(context.Context, ocispec.Descriptor) (*converter.ImageData, error) { return nil, bad }
	_, err := run(t, from, "oci:"+t.TempDir(), opts)
	require.ErrorIs(t, err, bad)

	opts.Open = func(ctx context.Context, d ocispec.Descriptor) (*converter.ImageData, error) {
		data, err := whole(ctx, d)
		if err == nil {
			data.Data = spoiled{bad}
		}
		return data, err
	}
	_, err = run(t, from, "oci:"+t.TempDir(), opts)
	require.ErrorIs(t, err, bad)

	closed := 0
	opts = host
	opts.Parallel = 1
	opts.Layer.SpoolDir = t.TempDir() + "/absent"
	opts.Open = func(ctx context.Context, d ocispec.Descriptor) (*converter.ImageData, error) {
		data, err := whole(ctx, d)
		if err == nil {
			data.Close = func() error { closed++; return nil }
		}
		return data, err
	}
	_, err = run(t, from, "oci:"+t.TempDir(), opts)
	require.ErrorContains(t, err, "absent")
	require.Equal(t, 1, closed)
}
