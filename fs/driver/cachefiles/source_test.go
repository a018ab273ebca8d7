package cachefiles

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

func newLayer(t *testing.T, img *drivertest.Image) *drivertest.Layer {
	t.Helper()
	l := drivertest.NewLayer(t, t.TempDir(), "layer", img)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	return l
}

// view shows a source as the kernel sees it.
type view struct{ s *source }

func (d view) ReadAt(p []byte, off int64) (int, error) {
	if off >= d.s.size {
		return 0, io.EOF
	}
	n := min(int64(len(p)), d.s.size-off)
	if err := d.s.readAt(nil, p[:n], off); err != nil { //nolint:staticcheck // the fake fills without a context
		return 0, err
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// The kernel sees no hole, and the same files.
func TestPlanHasNoHoles(t *testing.T) {
	for _, split := range []bool{false, true} {
		img := drivertest.NewImage(t, 1, split) // it has a sparse file
		l := newLayer(t, img)
		require.NoError(t, l.Fill(t.Context()))
		p, err := newPlan(t.TempDir(), "layer.abc", l)
		require.NoError(t, err)
		require.Equal(t, []string{"layer.abc.m", "layer.abc.d"}, p.keys)
		meta, data := p.sources[0], p.sources[1]
		require.Zero(t, data.size%blockSize)
		require.Greater(t, data.size, data.data)

		policy := erofs.DefaultPolicy(meta.size)
		policy.Devices = []erofs.Device{{Blocks: uint64(data.size / blockSize)}}
		policy.NoHoles = true
		parsed, err := erofs.Parse(view{meta}, policy)
		require.NoError(t, err)
		files := 0
		require.NoError(t, parsed.Tree.Walk(func(path []byte, i erofs.Inode) error {
			want, ok := img.Files[string(bytes.TrimPrefix(path, []byte("/")))]
			if !ok {
				return nil
			}
			files++
			got := make([]byte, len(want))
			for _, e := range parsed.Tree.Extents(i) {
				require.EqualValues(t, 1, e.Device)
				_, err := view{data}.ReadAt(got[e.Off:e.Off+e.Len], e.Addr)
				require.NoError(t, err)
			}
			require.True(t, bytes.Equal(want, got), "%s differs", path)
			return nil
		}))
		require.Equal(t, len(img.Files), files)

		again, err := newPlan(t.TempDir(), "layer.abc", l)
		require.NoError(t, err)
		a, b := make([]byte, meta.size), make([]byte, meta.size)
		require.NoError(t, meta.readAt(t.Context(), a, 0))
		require.NoError(t, again.sources[0].readAt(t.Context(), b, 0))
		require.Equal(t, a, b, "a successor would serve other metadata")
		require.NoError(t, p.close())
		require.NoError(t, again.close())
	}
}

// A layer without holes is served as it is.
func TestPlanWithoutHoles(t *testing.T) {
	l := newLayer(t, drivertest.NewBigImage(t, 1<<20))
	p, err := newPlan(t.TempDir(), "layer.abc", l)
	require.NoError(t, err)
	require.Equal(t, []string{"layer.abc.d"}, p.keys)
	require.Nil(t, p.scratch)
	require.Equal(t, p.sources[0].data, p.sources[0].size)
	require.NoError(t, p.close())
}

func TestLongHoles(t *testing.T) {
	const area = 1 << 20
	exts := solidExtents([]erofs.Extent{
		{Off: 0, Len: 4096, Addr: 8192},
		{Off: 4096, Len: 2*area + 5000, Addr: erofs.HoleAddr},
	}, 1<<30, area)
	require.Equal(t, []erofs.Extent{
		{Off: 0, Len: 4096, Device: 1, Addr: 8192},
		{Off: 4096, Len: area, Device: 1, Addr: 1 << 30},
		{Off: 4096 + area, Len: area, Device: 1, Addr: 1 << 30},
		{Off: 4096 + 2*area, Len: 5000, Device: 1, Addr: 1 << 30},
	}, exts)
}

func TestPlanOfRubbish(t *testing.T) {
	l := newLayer(t, &drivertest.Image{Data: make([]byte, 8192)})
	_, err := newPlan(t.TempDir(), "layer.abc", l)
	require.ErrorContains(t, err, "looking for holes")
}

func TestScratchNeedsADirectory(t *testing.T) {
	l := newLayer(t, drivertest.NewImage(t, 1, false))
	file := t.TempDir() + "/file"
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err := newPlan(file+"/dir", "layer.abc", l)
	require.ErrorIs(t, err, unix.ENOTDIR)
}

func TestSourceReads(t *testing.T) {
	img := drivertest.NewBigImage(t, 1<<20)
	l := newLayer(t, img)
	s := &source{layer: l, data: int64(len(img.Data)), size: int64(len(img.Data)) + 3*blockSize}
	require.True(t, s.resident(s.data, blockSize), "zeros need no fill")
	require.False(t, s.resident(s.data-blockSize, 2*blockSize))

	p := bytes.Repeat([]byte{1}, 2*blockSize)
	require.NoError(t, s.readAt(t.Context(), p, s.data-blockSize))
	require.Equal(t, img.Data[len(img.Data)-blockSize:], p[:blockSize])
	require.Equal(t, make([]byte, blockSize), p[blockSize:])
	require.True(t, s.resident(s.data-blockSize, 2*blockSize))
	p[0] = 1
	require.NoError(t, s.readAt(t.Context(), p, s.data+blockSize))
	require.Equal(t, make([]byte, 2*blockSize), p)

	down := errors.New("registry is down")
	l.Fail(down)
	require.ErrorIs(t, s.readAt(t.Context(), p, 300<<10), down)
	s.data += blockSize // longer than the file
	require.Error(t, s.readAt(t.Context(), p, s.data-blockSize))
}
