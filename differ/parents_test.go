package differ

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

// TestApplyParents: a directory that a tar names only as a parent is as it was
// below, in the highest layer that has it and that is here whole.
func TestApplyParents(t *testing.T) {
	root := t.TempDir()
	store := newLayerStore(t)
	layer := func(id string, ents ...ent) {
		d := filepath.Join(root, "snapshots", id)
		write(t, filepath.Join(d, MarkerFile), "")
		require.NoError(t, os.Mkdir(filepath.Join(d, MountDir), 0o755))
		_, err := New(store, ServiceConfig{}).Apply(t.Context(), store.add(t, ocispec.MediaTypeImageLayer, mkTar(t, ents...)),
			[]mount.Mount{{Type: "bind", Source: filepath.Join(d, MountDir)}})
		require.NoError(t, err)
	}
	mode := func(name string, mode int64, uid int) ent {
		e := dir(name)
		e.Mode, e.Uid = mode, uid
		return e
	}
	layer("1", mode("a", 0o711, 1), mode("a/b", 0o700, 2), mode("c", 0o770, 3), file("gone/x", ""), mode("gone", 0o700, 4), symlink("out", "/"))
	layer("2", mode("a", 0o1777, 5), file("c", "no directory"), file(".wh.gone", ""))
	lower := "lowerdir="
	for _, id := range []string{"2", "1"} {
		at := filepath.Join(root, "l", id)
		require.NoError(t, os.MkdirAll(filepath.Dir(at), 0o755))
		require.NoError(t, os.Symlink(mountFile(t, filepath.Join(root, "snapshots", id, LayerFile)), at))
		lower += at + ":"
	}
	apply := func(lower string) []string {
		d := filepath.Join(root, "snapshots", "3")
		require.NoError(t, os.RemoveAll(d))
		write(t, filepath.Join(d, MarkerFile), "")
		require.NoError(t, os.Mkdir(filepath.Join(d, MountDir), 0o755))
		desc := store.add(t, ocispec.MediaTypeImageLayer, mkTar(t, file("a/b/f", ""), file("c/f", ""), file("gone/f", ""), file("out/tmp/f", ""), file("new/f", "")))
		_, err := New(store, ServiceConfig{Snapshots: filepath.Join(root, "snapshots")}).Apply(t.Context(), desc,
			[]mount.Mount{{Type: "overlay", Options: []string{"upperdir=" + d + "/fs", "workdir=" + d + "/work", lower}}})
		require.NoError(t, err)
		var dirs []string
		for _, line := range list(t, mountFile(t, filepath.Join(d, LayerFile))) {
			if line != rootLine && !strings.Contains(line, " -644 ") {
				dirs = append(dirs, line)
			}
		}
		return dirs
	}
	require.Equal(t, []string{"a d1777 5:0", "a/b d700 2:0", "c d755 0:0", "gone d755 0:0", "new d755 0:0", "out d755 0:0", "out/tmp d755 0:0"}, apply(lower[:len(lower)-1]))

	// A layer that is not here whole is not asked, nor are those below it.
	require.Equal(t, []string{"a d755 0:0", "a/b d755 0:0", "c d755 0:0", "gone d755 0:0", "new d755 0:0", "out d755 0:0", "out/tmp d755 0:0"},
		apply("lowerdir="+filepath.Join(root, "l", "9")+":"+filepath.Join(root, "l", "1")))
}
