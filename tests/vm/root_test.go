package vm

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// A root that is there is not asked for again, and one that cannot be brought is an
// error that says why.
func TestFetchRoot(t *testing.T) {
	root, cache := t.TempDir(), t.TempDir()
	tools := filepath.Join(root, "tests/tools")
	require.NoError(t, os.MkdirAll(tools, 0o755))
	script := func(body string) {
		require.NoError(t, os.WriteFile(filepath.Join(tools, "vm-root.sh"), []byte("#!/bin/sh\nset -e\n"+body), 0o755))
	}
	t.Setenv(UpdateEnv, "")
	script("echo no such suite; exit 3")
	_, _, err := fetchRoot(t.Context(), root, cache, "s")
	require.ErrorContains(t, err, "no such suite")

	script(`[ "$2" = s ]; mkdir "$1"; echo archive >"$1/root.tar"; echo 257 >"$1/version"`)
	for range 2 { // the second mkdir would fail
		archive, version, err := fetchRoot(t.Context(), root, cache, "s")
		require.NoError(t, err)
		require.FileExists(t, archive)
		require.Equal(t, "257", version)
	}
}

// What is laid out is the archive, and what the guest needs at its places: the
// units with the bytes of the repository.
func TestLayRoot(t *testing.T) {
	module, err := testenv.Root()
	require.NoError(t, err)
	dir := t.TempDir()
	base := filepath.Join(dir, "base")
	require.NoError(t, os.MkdirAll(filepath.Join(base, "etc"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(base, "etc/machine-id"), []byte("m"), 0o644))
	archive := filepath.Join(dir, "root.tar")
	out, err := exec.CommandContext(t.Context(), "tar", "-C", base, "-cf", archive, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	h := &Host{Root: module, commands: dir}
	tree := filepath.Join(dir, "tree")
	require.ErrorContains(t, h.layRoot(t.Context(), filepath.Join(dir, "half"), archive), "lazyerofs")
	for _, name := range []string{"lazyerofs", "lazyerofsd", "containerd", "ctr"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(name), 0o755))
	}
	require.NoError(t, h.layRoot(t.Context(), tree, archive))

	require.FileExists(t, filepath.Join(tree, "etc/machine-id"))
	units, err := filepath.Glob(filepath.Join(module, unitDir, "*.*"))
	require.NoError(t, err)
	require.NotEmpty(t, units)
	for _, u := range units {
		if strings.HasSuffix(u, ".d") {
			continue
		}
		want, err := os.ReadFile(u)
		require.NoError(t, err)
		got, err := os.ReadFile(filepath.Join(tree, "etc/systemd/system", filepath.Base(u)))
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	require.FileExists(t, filepath.Join(tree, "etc/systemd/system/containerd.service"))
	require.FileExists(t, filepath.Join(tree, "etc/systemd/system/containerd.service.d/lazyerofs.conf"))
	st, err := os.Stat(filepath.Join(tree, "usr/local/bin/lazyerofsd"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o755), st.Mode().Perm())
	// The paths of the data disk lead to the root.
	_, err = os.Stat(filepath.Join(tree, DiskRoot, "etc/machine-id"))
	require.NoError(t, err)

	require.ErrorContains(t, h.layRoot(t.Context(), filepath.Join(dir, "other"), filepath.Join(dir, "none")), "none")
}
