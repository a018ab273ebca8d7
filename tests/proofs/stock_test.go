package proofs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// Stock containerd, with its own EROFS snapshotter and differ and nothing of
// ours, pulls and runs what we convert.
func TestStockContainerd(t *testing.T) {
	dir := scratch(t)
	testenv.VerifyNoLeaks(t, dir)
	s := openShop(t, dir)
	plain := s.tiny()
	plainRef := s.Addr() + "/plain:1"
	require.NoError(t, plain.Push(t.Context(), plainRef))

	// containerd loads its differ only where mkfs.erofs knows --tar.
	t.Setenv("PATH", filepath.Dir(testenv.MustTool(t, "mkfs.erofs"))+string(os.PathListSeparator)+os.Getenv("PATH"))
	entry := func(platform, name, differ string) map[string]any {
		return map[string]any{"platform": platform, "snapshotter": name, "differ": differ}
	}
	c, err := testenv.StartContainerd(t.Context(), filepath.Join(dir, "c"), testenv.ContainerdOptions{Config: map[string]any{
		"plugins": map[string]any{"io.containerd.transfer.v1.local": map[string]any{"unpack_config": []any{
			entry("linux/amd64", "overlayfs", "walking"),
			entry("linux(+erofs)/amd64", "erofs", "erofs"),
		}}},
	}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Stop()) })

	run := func(snapshotter, ref, id string) string {
		_, err := c.Ctr(t.Context(), "images", "pull", "--plain-http", "--snapshotter", snapshotter, ref)
		require.NoError(t, err)
		out, err := c.Run(t.Context(), append([]string{"--snapshotter", snapshotter, ref, id}, plain.Ready...)...)
		require.NoError(t, err)
		return out
	}
	want := run("overlayfs", plainRef, "overlayfs")
	require.Equal(t, testenv.TinyOutput, want)
	for name, form := range forms {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, want, run("erofs", s.convert(plain, name, form).ref, name))
			// With a hash tree behind the image too, of which it takes no notice.
			require.Equal(t, want, run("erofs", s.convert(plain, name+"-tree", form, "--dm-verity").ref, name+"-tree"))
		})
	}
}
