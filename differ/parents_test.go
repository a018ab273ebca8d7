package differ

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// pile is snapshots of layers that lie on each other.
type pile struct {
	root  string
	store layerStore
	lower []string // where the layers are mounted, the highest first
}

func newPile(t *testing.T) *pile {
	p := &pile{root: t.TempDir(), store: newLayerStore(t)}
	require.NoError(t, os.Mkdir(filepath.Join(p.root, "l"), 0o755))
	return p
}

// apply unpacks a layer on those that are mounted at lower.
func (p *pile) apply(t *testing.T, id string, src []byte, lower ...string) (string, error) {
	d := filepath.Join(p.root, "snapshots", id)
	require.NoError(t, os.RemoveAll(d))
	write(t, filepath.Join(d, MarkerFile), "")
	require.NoError(t, os.Mkdir(filepath.Join(d, MountDir), 0o755))
	mounts := []mount.Mount{{Type: "bind", Source: d + "/fs"}}
	if len(lower) > 0 {
		mounts = []mount.Mount{{Type: "overlay", Options: []string{"upperdir=" + d + "/fs", "workdir=" + d + "/work", "lowerdir=" + strings.Join(lower, ":")}}}
	}
	_, err := New(p.store, ServiceConfig{Snapshots: filepath.Join(p.root, "snapshots")}).
		Apply(t.Context(), p.store.add(t, ocispec.MediaTypeImageLayer, src), mounts)
	return filepath.Join(d, LayerFile), err
}

// add unpacks and mounts a layer on the others.
func (p *pile) add(t *testing.T, id string, ents ...ent) {
	layer, err := p.apply(t, id, mkTar(t, ents...), p.lower...)
	require.NoError(t, err)
	at := filepath.Join(p.root, "l", id)
	require.NoError(t, os.Symlink(mountFile(t, layer), at))
	p.lower = slices.Insert(p.lower, 0, at)
}

// dirs unpacks a layer of empty files and returns the directories that it has then.
func (p *pile) dirs(t *testing.T, lower []string, files ...string) []string {
	var ents []ent
	for _, name := range files {
		ents = append(ents, file(name, ""))
	}
	layer, err := p.apply(t, "top", mkTar(t, ents...), lower...)
	require.NoError(t, err)
	var dirs []string
	for _, line := range list(t, mountFile(t, layer)) {
		if line != rootLine && !strings.Contains(line, " -644 ") {
			dirs = append(dirs, line)
		}
	}
	return dirs
}

func modeDir(name string, mode int64, uid int) ent {
	e := dir(name)
	e.Mode, e.Uid = mode, uid
	return e
}

// TestApplyParents: a directory that a tar names only as a parent is as it was
// below, in the highest layer that has it and that is here whole.
func TestApplyParents(t *testing.T) {
	p := newPile(t)
	p.add(t, "1", modeDir("a", 0o711, 1), modeDir("a/b", 0o700, 2), modeDir("c", 0o770, 3), file("gone/x", ""), modeDir("gone", 0o700, 4), symlink("out", "/"))
	p.add(t, "2", modeDir("a", 0o1777, 5), file("c", "no directory"), file(".wh.gone", ""))
	files := []string{"a/b/f", "c/f", "gone/f", "out/tmp/f", "new/f"}
	require.Equal(t, []string{"a d1777 5:0", "a/b d700 2:0", "c d755 0:0", "gone d755 0:0", "new d755 0:0", "out d755 0:0", "out/tmp d755 0:0"}, p.dirs(t, p.lower, files...))

	// A layer that is not here whole is not asked, nor are those below it.
	require.Equal(t, []string{"a d755 0:0", "a/b d755 0:0", "c d755 0:0", "gone d755 0:0", "new d755 0:0", "out d755 0:0", "out/tmp d755 0:0"},
		p.dirs(t, []string{filepath.Join(p.root, "l", "9"), p.lower[1]}, files...))
}

// TestApplyParentsDeletedBelow: a directory that a layer between deleted, replaced,
// or hides by being opaque, is new, as it is for who unpacks into a mount.
func TestApplyParentsDeletedBelow(t *testing.T) {
	p := newPile(t)
	var first, top []ent
	for _, name := range []string{"again", "file", "fresh", "gone", "kept", "link"} {
		first = append(first, modeDir(name, 0o700, 4), modeDir(name+"/sub", 0o700, 8), modeDir(name+"/sub/sub", 0o711, 9))
		top = append(top, file(name+"/sub/sub/f", ""))
	}
	p.add(t, "1", first...)
	p.add(t, "2", file(".wh.gone", ""), modeDir("fresh", 0o750, 5), file("fresh/.wh..wh..opq", ""), file("file", "x"), symlink("link", "kept"),
		file(".wh.again", ""), modeDir("again", 0o750, 5), modeDir("again/sub", 0o770, 6))
	want := []string{
		"again d750 5:0", "again/sub d770 6:0", "again/sub/sub d755 0:0",
		"fresh d750 5:0", "fresh/sub d755 0:0", "fresh/sub/sub d755 0:0",
		"gone d755 0:0", "gone/sub d755 0:0", "gone/sub/sub d755 0:0",
		"kept d700 4:0", "kept/sub d700 8:0", "kept/sub/sub d711 9:0",
	}
	var names []string
	for _, e := range top {
		names = append(names, e.Name)
	}
	var got []string
	for _, line := range p.dirs(t, p.lower, names...) {
		if strings.HasPrefix(line, "file") || strings.HasPrefix(line, "link") { // what is below those unpacks nowhere else
			require.Contains(t, line, " d755 0:0")
		} else {
			got = append(got, line)
		}
	}
	require.Equal(t, want, got)

	upper, merged := t.TempDir(), t.TempDir()
	require.NoError(t, os.Mkdir(upper+"/fs", 0o755))
	require.NoError(t, os.Mkdir(upper+"/work", 0o755))
	require.NoError(t, unix.Mount("overlay", merged, "overlay", 0, "upperdir="+upper+"/fs,workdir="+upper+"/work,lowerdir="+strings.Join(p.lower, ":")))
	defer func() { require.NoError(t, unix.Unmount(merged, 0)) }()
	top = slices.DeleteFunc(top, func(e ent) bool { return strings.HasPrefix(e.Name, "file") || strings.HasPrefix(e.Name, "link") })
	_, err := archive.Apply(t.Context(), merged, bytes.NewReader(mkTar(t, top...)))
	require.NoError(t, err)
	theirs := slices.DeleteFunc(list(t, merged), func(line string) bool { return !slices.Contains(want, line) })
	require.Equal(t, want, theirs, "containerd's unpacking into a mount")
}

// TestApplyParentsUnreadable: what cannot be read below is not taken for absent.
func TestApplyParentsUnreadable(t *testing.T) {
	p := newPile(t)
	var ents []ent
	for i := range 300 {
		ents = append(ents, modeDir(fmt.Sprintf("a/%03d", i), 0o700, 1))
	}
	layer, err := p.apply(t, "1", mkTar(t, ents...))
	require.NoError(t, err)
	img, err := os.ReadFile(layer)
	require.NoError(t, err)
	clear(img[blockSize:]) // the block before it has a checksum
	require.NoError(t, os.WriteFile(layer, img, 0o600))
	at := filepath.Join(p.root, "l", "1")
	require.NoError(t, os.Symlink(mountFile(t, layer), at))
	layer, err = p.apply(t, "top", mkTar(t, file("a/007/f", "")), at)
	require.ErrorIs(t, err, unix.EUCLEAN)
	require.ErrorContains(t, err, `looking up directory "a`)
	require.NoFileExists(t, layer)
}
