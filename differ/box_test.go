package differ

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// box is the snapshot of a container: a real overlay over one lower directory.
type box struct {
	snaps, lower, upper, merged string
	mounts, parent              []mount.Mount
}

// newBox mounts an overlay over what fill puts into the lower directory.
func newBox(t testing.TB, options string, fill func(lower string)) *box {
	t.Helper()
	d := t.TempDir()
	b := &box{snaps: d + "/snapshots", lower: d + "/lower", upper: d + "/snapshots/7/fs", merged: d + "/merged"}
	for _, p := range []string{b.lower, b.upper, b.snaps + "/7/work", b.merged} {
		require.NoError(t, os.MkdirAll(p, 0o755))
	}
	fill(b.lower)
	require.NoError(t, unix.Mount("overlay", b.merged, "overlay", 0,
		fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s%s", b.lower, b.upper, b.snaps+"/7/work", options)))
	t.Cleanup(func() { _ = unix.Unmount(b.merged, unix.MNT_DETACH) })
	// Compare must not look below the upper directory: there is nothing there.
	b.mounts = []mount.Mount{{Type: "overlay", Options: []string{"workdir=/gone/work", "upperdir=" + b.upper, "lowerdir=/gone/l/2:/gone/l/1"}}}
	b.parent = []mount.Mount{{Type: "overlay", Options: []string{"ro", "lowerdir=/gone/l/2:/gone/l/1"}}}
	return b
}

func (b *box) differ(store content.Store) *Differ {
	return New(store, ServiceConfig{Snapshots: b.snaps})
}

// compare compares and returns the layer's descriptor and bytes.
func (b *box) compare(t testing.TB, store layerStore, opts ...diff.Opt) (ocispec.Descriptor, []byte) {
	t.Helper()
	desc, err := b.differ(store).Compare(t.Context(), b.parent, b.mounts, opts...)
	require.NoError(t, err)
	blob, err := content.ReadBlob(t.Context(), store, desc)
	require.NoError(t, err)
	return desc, blob
}

func write(t testing.TB, p, data string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(p), 0o755))
	require.NoError(t, os.WriteFile(p, []byte(data), 0o644))
}

// oldFiles are in the lower directory.
func oldFiles(t testing.TB) func(string) {
	return func(lower string) {
		for _, p := range []string{"kept", "deleted", "changed", "renamed", "appended", "dir/kept", "dir/deleted", "dir/sub/x",
			"gone/a/b", "again/old1", "again/old2", "todir", "tofile/x", "sock", "deep/er/est"} {
			write(t, lower+"/"+p, "old "+p)
		}
		require.NoError(t, os.Symlink("kept", lower+"/link"))
	}
}

// changeAll does to a tree all that a container can do.
func changeAll(t testing.TB, m string) {
	for _, p := range []string{"deleted", "dir/deleted", "gone", "again", "todir", "tofile", "link", "sock"} {
		require.NoError(t, os.RemoveAll(m+"/"+p))
	}
	write(t, m+"/changed", text(1, 5000))
	require.NoError(t, os.Rename(m+"/renamed", m+"/renamed2"))
	f, err := os.OpenFile(m+"/appended", os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteString(random(2, 700<<10))
	require.NoError(t, err)
	require.NoError(t, f.Close())
	write(t, m+"/again/new", "new")
	write(t, m+"/todir/x", "x")
	write(t, m+"/tofile", "file")
	write(t, m+"/deep/er/new", "n")
	require.NoError(t, os.Symlink("/etc/passwd", m+"/link"))
	require.NoError(t, os.Link(m+"/changed", m+"/dir/linked"))
	require.NoError(t, os.Link(m+"/link", m+"/link2"))
	require.NoError(t, unix.Mknod(m+"/chr", unix.S_IFCHR|0o640, int(unix.Mkdev(259, 70000))))
	require.NoError(t, unix.Mknod(m+"/blk", unix.S_IFBLK|0o600, int(unix.Mkdev(8, 1))))
	require.NoError(t, unix.Mkfifo(m+"/fifo", 0o622))
	require.NoError(t, unix.Mknod(m+"/sock", unix.S_IFSOCK|0o600, 0))
	write(t, m+"/setuid", "s")
	require.NoError(t, os.Lchown(m+"/setuid", 1<<20, 99999))
	require.NoError(t, unix.Chmod(m+"/setuid", 0o6755))
	require.NoError(t, unix.Setxattr(m+"/setuid", "security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	require.NoError(t, os.Link(m+"/setuid", m+"/setuid2"))
	require.NoError(t, os.Link(m+"/setuid", m+"/dir/setuid3"))
	require.NoError(t, unix.Setxattr(m+"/dir", "user.k", []byte("v\x00w"), 0))
	require.NoError(t, unix.Setxattr(m+"/dir", "trusted.mine", []byte("x"), 0))
	acl := posixACL(6, 7, 4)
	require.NoError(t, unix.Setxattr(m+"/changed", aclAccess, acl, 0))
	require.NoError(t, os.Mkdir(m+"/acl", 0o750)) // empty: containerd's unpacking makes what is in it inherit the list
	require.NoError(t, unix.Setxattr(m+"/acl", aclDefault, acl, 0))
	write(t, m+"/"+strings.Repeat("\xff\xfe", 127)+"!", "name")
	write(t, m+"/new\nline=", "nl")
	require.NoError(t, os.Truncate(m+"/"+"kept", 0))
	require.NoError(t, os.Chtimes(m+"/kept", time.Time{}, time.Unix(1700000000, 123456789)))
	sparse, err := os.Create(m + "/sparse")
	require.NoError(t, err)
	_, err = sparse.WriteAt([]byte(text(3, 5000)), 3<<20+17)
	require.NoError(t, err)
	require.NoError(t, sparse.Truncate(64<<20))
	require.NoError(t, sparse.Close())
}

// posixACL is a list with one named user.
func posixACL(owner, named, group byte) []byte { return posixACLMask(owner, named, group, 7) }

func posixACLMask(owner, named, group, mask byte) []byte {
	none := "\xff\xff\xff\xff"
	e := func(tag, perm byte, id string) string { return string([]byte{tag, 0, perm, 0}) + id }
	return []byte("\x02\x00\x00\x00" + e(1, owner, none) + e(2, named, "\xe8\x03\x00\x00") + e(4, group, none) + e(16, mask, none) + e(32, 4, none))
}

// tree is the tree that the container sees, without what no layer holds.
func (b *box) tree(t testing.TB) map[string]node {
	want := scanTree(t, b.merged)
	for p, n := range want {
		if n.mode&unix.S_IFMT == unix.S_IFSOCK {
			delete(want, p)
			continue
		}
		n.xattrs = strings.ReplaceAll(n.xattrs, ` trusted.mine="x"`, "")
		want[p] = n
	}
	return want
}

// restack mounts a layer over the same lower directory.
func (b *box) restack(t testing.TB, layer string) map[string]node {
	t.Helper()
	m := t.TempDir()
	require.NoError(t, unix.Mount("overlay", m, "overlay", unix.MS_RDONLY, "lowerdir="+layer+":"+b.lower))
	defer func() { require.NoError(t, unix.Unmount(m, 0)) }()
	return scanTree(t, m)
}

func requireTrees(t testing.TB, want, got map[string]node) {
	t.Helper()
	for p, n := range want {
		require.Equal(t, n, got[p], "%q", p)
	}
	require.Equal(t, len(want), len(got))
}
