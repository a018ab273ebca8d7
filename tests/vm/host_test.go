package vm

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/kernel"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
	"github.com/lazyerofs/lazyerofs/tests/vm/probe"
)

func TestVersion(t *testing.T) {
	dir := t.TempDir()
	_, err := versionOf(dir)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "version"), nil, 0o644))
	_, err = versionOf(dir)
	require.ErrorContains(t, err, "no version")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "version"), []byte("6.1.1-2\n"), 0o644))
	v, err := versionOf(dir)
	require.NoError(t, err)
	require.Equal(t, "6.1.1-2", v)
}

// A kernel that is there is not asked for again as long as it would be made in the
// same way, and one that cannot be brought is an error that says why.
func TestFetch(t *testing.T) {
	root, cache := t.TempDir(), t.TempDir()
	tools := filepath.Join(root, "tests/tools")
	require.NoError(t, os.MkdirAll(tools, 0o755))
	script := func(body string) {
		require.NoError(t, os.WriteFile(filepath.Join(tools, "vm-kernel.sh"), []byte("#!/bin/sh\nset -e\n"+body), 0o755))
	}
	g := Guest{Name: "g", Suite: "s", OnDemand: true}
	t.Setenv(UpdateEnv, "")
	script("echo no such suite; exit 3")
	_, err := Fetch(t.Context(), root, cache, g)
	require.ErrorContains(t, err, "no such suite")

	script(`[ "$2 $3" = "s ondemand" ]; mkdir -p "$1"; cat "$0.version" >"$1/version"`)
	next := func(version string) {
		require.NoError(t, os.WriteFile(filepath.Join(tools, "vm-kernel.sh.version"), []byte(version), 0o644))
	}
	next("1")
	k, err := Fetch(t.Context(), root, cache, g)
	require.NoError(t, err)
	require.Equal(t, "1", k.Version)
	require.Equal(t, filepath.Join(k.Dir, "modules-ondemand"), k.Modules)

	next("2")
	k, err = Fetch(t.Context(), root, cache, g)
	require.NoError(t, err)
	require.Equal(t, "1", k.Version)
	t.Setenv(UpdateEnv, "1")
	k, err = Fetch(t.Context(), root, cache, g)
	require.NoError(t, err)
	require.Equal(t, "2", k.Version)

	t.Setenv(UpdateEnv, "")
	script(`mkdir -p "$1"; echo 3 >"$1/version"`)
	k, err = Fetch(t.Context(), root, cache, Guest{Name: "g", Suite: "s"})
	require.NoError(t, err)
	require.Equal(t, "3", k.Version)
	require.Equal(t, filepath.Join(k.Dir, "modules"), k.Modules)
	_, err = Fetch(t.Context(), root, cache, Guest{Name: "g", KernelOf: "none"})
	require.ErrorContains(t, err, "none")
}

// A program is loaded with its loader and libraries, and with nothing else. Only the
// first process must not need a loader.
func TestLoadedWith(t *testing.T) {
	helper, err := exec.LookPath(helperName)
	require.NoError(t, err)
	list, err := loadedWith(t.Context(), helper, helper)
	require.NoError(t, err)
	var names []string
	for _, p := range list {
		require.FileExists(t, p.from)
		require.Equal(t, p.from, p.to)
		names = append(names, filepath.Base(p.to))
	}
	require.Contains(t, names, "libc.so.6")
	root := t.TempDir()
	for _, p := range append(list, program{helper, "/" + helperName}) {
		require.NoError(t, os.MkdirAll(filepath.Join(root, filepath.Dir(p.to)), 0o755))
		require.NoError(t, copyFile(p.from, filepath.Join(root, p.to), 0o755))
	}
	out, err := exec.CommandContext(t.Context(), "chroot", root, "/"+helperName, "-V").CombinedOutput()
	require.NoError(t, err, "%s", out)
	_, err = loadedWith(t.Context(), "/no/such/program")
	require.ErrorContains(t, err, "/no/such/program")
}

// debugfs reads the disk here; in a guest it is the kernel.
func TestDataDisk(t *testing.T) {
	root, dir := t.TempDir(), t.TempDir()
	data := filepath.Join(root, "a/b/testdata/sub")
	require.NoError(t, os.MkdirAll(data, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(data, "f"), []byte("content"), 0o644))
	list, err := testdata(root, "a/b")
	require.NoError(t, err)
	require.Equal(t, []program{{filepath.Join(data, "f"), "a/b/testdata/sub/f"}}, list)
	none, err := testdata(root, "a")
	require.NoError(t, err)
	require.Empty(t, none)

	plan := Plan{Nonce: nonce, Runs: []Run{{Package: "a/b", Timeout: time.Minute}}}
	disk := filepath.Join(dir, "disk")
	require.NoError(t, buildDisk(t.Context(), disk, filepath.Join(dir, "tree"), Guest{Verity: true}.features(), plan, list))
	cat := func(path string) string {
		out, err := exec.CommandContext(t.Context(), "debugfs", "-R", "cat "+path, disk).Output()
		require.NoError(t, err)
		return string(out)
	}
	require.Equal(t, "content", cat("/src/a/b/testdata/sub/f"))
	says, err := exec.CommandContext(t.Context(), "debugfs", "-R", "features", disk).Output()
	require.NoError(t, err)
	require.Contains(t, string(says), " verity")
	var got Plan
	require.NoError(t, json.Unmarshal([]byte(cat("/"+PlanFile)), &got))
	require.Equal(t, plan, got)
	require.Error(t, buildDisk(t.Context(), disk, filepath.Join(dir, "again"), Guest{}.features(), plan, []program{{"none", "x"}}))
}

// The table names what exists: packages of this module, capabilities that package
// kernel knows.
func TestGuestTable(t *testing.T) {
	root, err := testenv.Root()
	require.NoError(t, err)
	known := map[string]bool{}
	for _, c := range kernel.Report(t.TempDir()) {
		known[c.Name] = true
	}
	names := map[string]bool{}
	for _, g := range Guests {
		require.False(t, names[g.Name], "two guests are called %s", g.Name)
		names[g.Name] = true
		require.NotEmpty(t, g.Suite)
		own, err := g.owner()
		require.NoError(t, err)
		require.Equal(t, own.Suite, g.Suite)
		require.True(t, own.OnDemand || !g.OnDemand, "%s: nothing is rebuilt for %s", g.Name, own.Name)
		for _, c := range g.Capabilities {
			require.True(t, known[c], "%s: %s is no capability", g.Name, c)
		}
		for _, p := range g.Packages {
			require.DirExists(t, filepath.Join(root, p))
		}
	}
}

func TestPlanOfAGuest(t *testing.T) {
	t.Setenv(ArgsEnv, "")
	h := &Host{}
	p := h.plan(Guest{Capabilities: []string{"a", "b"}, Packages: []string{"x/y"}})
	require.NotEmpty(t, p.Nonce)
	require.NotEqual(t, p.Nonce, h.plan(Guest{}).Nonce)
	require.Len(t, p.Runs, 2)
	require.Equal(t, []string{probe.Env + "=a,b"}, p.Runs[0].Env)
	require.Equal(t, "x/y", p.Runs[1].Package)
	require.Empty(t, p.Runs[1].Args)
	require.Equal(t, []string{"-test.skip=^T$"}, h.plan(Guest{Packages: []string{"x/y"}, Skip: "^T$"}).Runs[1].Args)
	require.Equal(t, DefaultTimeout, p.Runs[1].Limit())
	require.Equal(t, time.Second, Run{Timeout: time.Second}.Limit())
	require.Empty(t, p.Init)
	require.Equal(t, systemdInit, h.plan(Guest{Root: "s"}).Init)
}

func TestBuilds(t *testing.T) {
	root, err := testenv.Root()
	require.NoError(t, err)
	b := Builder{Root: root, Dir: t.TempDir()}
	const tree, driver = "fs/dmverity", "fs/driver/dmverity" // two of one name
	binaries, err := b.Tests(t.Context(), []string{probePackage, lazyPackage, tree, driver})
	require.NoError(t, err)
	for _, pkg := range []string{lazyPackage, tree, driver} {
		require.FileExists(t, binaries[pkg])
	}
	require.NotEqual(t, binaries[tree], binaries[driver])
	cmd := exec.CommandContext(t.Context(), binaries[probePackage], "-test.v")
	cmd.Env = append(os.Environ(), "PATH=")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "--- PASS: TestProbes")
	first, err := b.Init(t.Context())
	require.NoError(t, err)
	said, _ := exec.CommandContext(t.Context(), "ldd", first).CombinedOutput()
	require.Contains(t, string(said), "not a dynamic executable")

	_, err = b.Tests(t.Context(), []string{"no/such/package"})
	require.ErrorContains(t, err, "no/such/package")
}

// A machine that cannot start or does not end is an error, with what there is of
// its output.
func TestBootErrors(t *testing.T) {
	dir := t.TempDir()
	m := machine{kernel: Kernel{Dir: dir}, dir: dir, disk: filepath.Join(dir, "none"), limit: time.Minute}
	_, err := boot(t.Context(), m)
	require.ErrorContains(t, err, "qemu")
	require.True(t, strings.Contains(err.Error(), "none") || strings.Contains(err.Error(), "executable"))
}
