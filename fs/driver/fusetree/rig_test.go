package fusetree

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

const (
	deadline  = 30 * time.Second
	pollEvery = 5 * time.Millisecond
)

// entry is a file of a test's layer.
type entry struct {
	path   string
	attr   erofs.Attr
	data   []byte // regular files; nil parts are holes
	holeAt int64  // from here to the end of data it is a hole
	target string
	link   string
	xattrs map[string]string
}

func dir(path string, mode uint16) entry {
	return entry{path: path, attr: erofs.Attr{Mode: unix.S_IFDIR | mode}}
}

func file(path, data string) entry {
	return entry{path: path, attr: erofs.Attr{Mode: unix.S_IFREG | 0o644, Mtime: 5}, data: []byte(data)}
}

// buildLayer makes the image of a layer.
func buildLayer(tb testing.TB, entries ...entry) *drivertest.Image {
	tb.Helper()
	return buildBlocks(tb, 12, entries...)
}

// buildBlocks makes the image of a layer in blocks of 2^bits bytes.
func buildBlocks(tb testing.TB, bits uint8, entries ...entry) *drivertest.Image {
	tb.Helper()
	block := 1 << bits
	b := erofs.NewBuilder()
	img := &drivertest.Image{Files: map[string][]byte{}}
	var area bytes.Buffer
	for _, e := range entries {
		var i erofs.Inode
		var err error
		switch {
		case e.link != "":
			to, ok := b.Lookup(e.link)
			require.True(tb, ok)
			require.NoError(tb, b.Link(e.path, to))
			continue
		case e.target != "":
			i, err = b.PutSymlink(e.path, e.attr, e.target)
		default:
			e.attr.Size = int64(len(e.data))
			i, err = b.Put(e.path, e.attr)
		}
		require.NoError(tb, err)
		for name, value := range e.xattrs {
			require.NoError(tb, b.SetXattr(i, name, []byte(value)))
		}
		if len(e.data) == 0 {
			continue
		}
		img.Files[e.path] = e.data
		end := int64(len(e.data))
		if e.holeAt > 0 {
			end = e.holeAt
		}
		exts := []erofs.Extent{{Len: end, Addr: int64(area.Len())}}
		if end < int64(len(e.data)) {
			exts = append(exts, erofs.Extent{Off: end, Len: int64(len(e.data)) - end, Addr: erofs.HoleAddr})
		}
		b.SetExtents(i, exts)
		area.Write(e.data[:end])
		area.Write(make([]byte, -area.Len()&(block-1)))
	}
	tree, err := b.Tree()
	require.NoError(tb, err)
	layout, err := erofs.NewLayout(tree, erofs.WriteOptions{BlockBits: bits})
	require.NoError(tb, err)
	var meta bytes.Buffer
	_, err = layout.WriteMeta(&meta, int64(area.Len()))
	require.NoError(tb, err)
	img.Pinned = int64(meta.Len())
	img.Data = append(meta.Bytes(), area.Bytes()...)
	return img
}

// rig is a driver with a keeper.
type rig struct {
	testing.TB
	ctx    context.Context
	keeper drivertest.Keeper
	driver *Driver
	conf   Config
}

func newRig(tb testing.TB, conf Config) *rig {
	ctx, cancel := context.WithTimeout(context.Background(), 2*deadline)
	tb.Cleanup(cancel)
	r := &rig{TB: tb, ctx: ctx, conf: conf}
	r.conf.Keeper = &r.keeper
	r.succeed()
	tb.Cleanup(func() {
		_ = r.driver.Shutdown(ctx) // a test may have done it
		require.NoError(tb, r.keeper.Close())
	})
	return r
}

// succeed replaces the driver by one that inherits what the keeper has.
func (r *rig) succeed() {
	inherited, err := r.keeper.Inherited()
	require.NoError(r, err)
	r.conf.Inherited = inherited
	r.driver, err = New(r.ctx, r.conf)
	require.NoError(r, err)
}

func (r *rig) layer(id string, img *drivertest.Image) *drivertest.Layer {
	l := drivertest.NewLayer(r, r.TempDir(), id, img)
	r.Cleanup(func() { require.NoError(r, l.Close()) })
	return l
}

// image mounts layers, bottom first, as one tree.
func (r *rig) image(layers ...driver.Layer) (string, driver.Mount) {
	target := r.TempDir()
	m, err := r.driver.MountImage(r.ctx, target, layers)
	require.NoError(r, err)
	r.undo(target)
	return target, m
}

func (r *rig) mount(l driver.Layer) (string, driver.Mount) {
	target := r.TempDir()
	m, err := r.driver.Mount(r.ctx, target, l)
	require.NoError(r, err)
	r.undo(target)
	return target, m
}

// undo takes away what a test leaves at target.
func (r *rig) undo(target string) {
	r.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
}

func (r *rig) end(m driver.Mount) {
	require.NoError(r, m.Close(r.ctx))
	require.NoError(r, m.Close(r.ctx), "closing twice")
	r.await(m.Done())
}

func (r *rig) await(c <-chan struct{}) {
	select {
	case <-c:
	case <-time.After(deadline):
		require.FailNow(r, "waited too long")
	}
}

func (r *rig) requireFiles(root string, want map[string][]byte) {
	for path, data := range want {
		got, err := os.ReadFile(filepath.Join(root, path))
		require.NoError(r, err, path)
		require.Equal(r, len(data), len(got), path)
		require.True(r, bytes.Equal(data, got), "%s has other bytes", path)
	}
}

func names(tb testing.TB, dir string) []string {
	entries, err := os.ReadDir(dir)
	require.NoError(tb, err)
	var list []string
	for _, e := range entries {
		list = append(list, fmt.Sprint(e.Name(), " ", e.Type()))
	}
	return list
}
