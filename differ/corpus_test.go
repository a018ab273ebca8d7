package differ

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
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

	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// hardCase is the tar of a layer that is easy to get wrong.
type hardCase struct {
	name string
	tar  func(t testing.TB) []byte
	// refused is part of our error; "" for a layer that we take.
	refused string
	// theirs says how containerd's unpacking differs: "" for the same tree,
	// "refuses", "otherwise", or "unreadable" (a tree that cannot be walked), each
	// with want.
	theirs string
	// want is what the layer changes in the tree below, as changes has it.
	want []string
}

// below is the tree that every layer of the corpus comes to lie on.
func below(t testing.TB) string {
	t.Helper()
	d := t.TempDir()
	require.NoError(t, os.Chmod(d, 0o755))
	for _, p := range []string{"etc/config", "etc/old", "bin/tool", "a/b/c/bar", "a/keep", "replaced/x/y", "file"} {
		write(t, d+"/"+p, "below "+p)
	}
	for p, target := range map[string]string{"lib": "usr/lib", "abs": "/a/b", "loop": "loop"} {
		require.NoError(t, os.Symlink(target, d+"/"+p))
	}
	write(t, d+"/usr/lib/so", "below so")
	require.NoError(t, os.Lchown(d+"/a", 7, 8))
	require.NoError(t, unix.Chmod(d+"/a", 0o1771))
	return d
}

// stack mounts layers, the highest first, read-only.
func stack(t testing.TB, layers ...string) string {
	t.Helper()
	m := t.TempDir()
	require.NoError(t, unix.Mount("overlay", m, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(layers, ":")))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(m, 0)) })
	return m
}

// theirs unpacks a layer as containerd does for its overlayfs snapshotter.
func theirs(t testing.TB, src []byte, lower string) (string, error) {
	t.Helper()
	d := t.TempDir()
	require.NoError(t, os.Chmod(d, 0o755))
	_, err := archive.Apply(t.Context(), d, bytes.NewReader(src),
		archive.WithConvertWhiteout(archive.OverlayConvertWhiteout), archive.WithParents([]string{lower}))
	return d, err
}

// ours makes a layer in both ways: for a registry and beside a snapshot.
func ours(t testing.TB, src []byte, lower string) (registry, local string, err error) {
	t.Helper()
	res, blob, err := convertTwice(t, src, Config{Level: 1,
		Implied: func(p string) (erofs.Attr, bool, error) {
			a, found, err := lowerDir{path: lower, opaque: xattrOpaque}.find(p)
			return a, found == here, err
		}})
	snaps := t.TempDir()
	dir := filepath.Join(snaps, "2")
	write(t, filepath.Join(dir, MarkerFile), "")
	require.NoError(t, os.Mkdir(filepath.Join(dir, MountDir), 0o755))
	require.NoError(t, os.MkdirAll(filepath.Join(snaps, "1"), 0o755))
	require.NoError(t, os.Symlink(lower, filepath.Join(snaps, "1", MountDir)))
	store := newLayerStore(t)
	_, aerr := New(store, ServiceConfig{Snapshots: snaps}).Apply(t.Context(), store.add(t, ocispec.MediaTypeImageLayer, src),
		[]mount.Mount{{Type: "overlay", Options: []string{"upperdir=" + dir + "/fs", "lowerdir=" + filepath.Join(snaps, "1", MountDir)}}})
	if err != nil {
		require.ErrorContains(t, aerr, err.Error())
		requireOnly(t, dir)
		return "", "", err
	}
	require.NoError(t, aerr)
	img := imageOf(t, blob, res)
	_, err = erofs.Parse(bytes.NewReader(img), erofs.DefaultPolicy(int64(len(img))))
	require.NoError(t, err, "the strict parser")
	f, err := os.Open(filepath.Join(dir, LayerFile))
	require.NoError(t, err)
	defer f.Close()
	st, err := f.Stat()
	require.NoError(t, err)
	_, err = erofs.Parse(f, erofs.DefaultPolicy(st.Size()))
	require.NoError(t, err, "the strict parser")
	return mountImage(t, img), mountFile(t, f.Name()), nil
}

// kept takes away what unpacking into a directory cannot keep: the times of
// directories that entries came into, and the root's attributes.
func kept(t testing.TB, root string) map[string]node {
	all := scanTree(t, root)
	for p, n := range all {
		if n.mode&unix.S_IFMT == unix.S_IFDIR {
			n.mtime = 0
			all[p] = n
		}
	}
	delete(all, ".")
	return all
}

// changes says what differs between two trees: "- path" for what went, and a line
// of list for what came or changed.
func changes(t testing.TB, lower, upper string) []string {
	t.Helper()
	was, is := list(t, lower), list(t, upper)
	out := []string{}
	for _, line := range is {
		if !slices.Contains(was, line) && !strings.HasPrefix(line, ". ") {
			out = append(out, line)
		}
	}
	require.NoError(t, filepath.WalkDir(lower, func(p string, _ fs.DirEntry, err error) error {
		rel, rerr := filepath.Rel(lower, p)
		if rerr != nil || err != nil {
			return fmt.Errorf("%w, %w", err, rerr)
		}
		if _, err := os.Lstat(filepath.Join(upper, rel)); err != nil {
			out = append(out, "- "+rel)
			if st, err := os.Lstat(p); err == nil && st.IsDir() {
				return fs.SkipDir
			}
		}
		return nil
	}))
	return out
}

// TestHardCases holds every tar of the corpus against the tree that containerd's
// unpacking makes, on a real overlay over a real kernel mount.
func TestHardCases(t *testing.T) {
	for _, c := range slices.Concat(specCases, nameCases, linkCases, whiteoutCases, attributeCases, dialectCases, sparseCases) {
		t.Run(strings.ReplaceAll(c.name, ",", ""), func(t *testing.T) { c.check(t) })
	}
}

func (c hardCase) check(t *testing.T) {
	src, lower := c.tar(t), below(t)
	their, terr := theirs(t, src, lower)
	registry, local, err := ours(t, src, lower)
	if c.refused != "" {
		require.ErrorContains(t, err, c.refused)
		require.Equal(t, c.theirs == "refuses", terr != nil, "containerd: %v", terr)
		return
	}
	require.NoError(t, err)
	got := stack(t, registry, lower)
	requireTrees(t, kept(t, got), kept(t, stack(t, local, lower)))
	switch c.theirs {
	case "":
		require.NoError(t, terr)
		requireTrees(t, kept(t, stack(t, their, lower)), kept(t, got))
		if c.want == nil {
			return
		}
	case "refuses":
		require.Error(t, terr)
	case "unreadable":
		require.NoError(t, terr)
		require.Error(t, filepath.WalkDir(stack(t, their, lower), func(p string, _ fs.DirEntry, err error) error {
			_, serr := os.Lstat(p)
			return errors.Join(err, serr)
		}))
	default:
		require.NoError(t, terr)
		require.NotEqual(t, c.want, changes(t, lower, stack(t, their, lower)), "containerd does the same by now")
	}
	require.Equal(t, c.want, changes(t, lower, got))
}

// entries is a tar as Go writes it.
func entries(ents ...ent) func(testing.TB) []byte {
	return func(t testing.TB) []byte { return mkTar(t, ents...) }
}

// header makes entries that no library writes: fields as they are, from a name
// in the oldest form, with a checksum over all.
func header(name string, typeflag byte, size int, set map[int]string) []byte {
	h := make([]byte, 512)
	copy(h, name)
	copy(h[100:], "0000644\x000000000\x000000000\x00")
	copy(h[124:], fmt.Sprintf("%011o\x00%011o\x00", size, 1700000000))
	h[156] = typeflag
	for at, s := range set {
		copy(h[at:], s)
	}
	copy(h[148:], "        ")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return h
}

// padded is data as it follows a header.
func padded(s string) []byte {
	return append([]byte(s), make([]byte, (512-len(s)%512)%512)...)
}

// raw is a tar of blocks, with the end that every tar should have.
func raw(parts ...[]byte) func(testing.TB) []byte {
	return func(testing.TB) []byte {
		return append(slices.Concat(parts...), make([]byte, 1024)...)
	}
}
