package vm

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// busybox's cpio is what reads the archive here; in a guest it is the kernel.
func TestInitrdUnpacks(t *testing.T) {
	dir := t.TempDir()
	k := Kernel{Modules: filepath.Join(dir, "modules")}
	require.NoError(t, os.MkdirAll(k.Modules, 0o755))
	contents := map[string]string{"101-b.ko": "one", "102-a.ko": strings.Repeat("two", 1001), "103-empty.ko": ""}
	for name, body := range contents {
		require.NoError(t, os.WriteFile(filepath.Join(k.Modules, name), []byte(body), 0o644))
	}
	script := filepath.Join(dir, "program")
	require.NoError(t, os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755))
	path, _, err := busybox(t.Context())
	require.NoError(t, err)

	file := filepath.Join(dir, "initrd")
	require.NoError(t, buildInitrd(file, k, []program{{script, "/init"}, {script, "/lib/a/b"}, {path, "/bin/busybox"}}, []string{"sh", "busybox", "ip"}))
	archive, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Zero(t, len(archive)%4)
	out := filepath.Join(dir, "out")
	require.NoError(t, os.Mkdir(out, 0o755))
	cmd := exec.CommandContext(t.Context(), path, "cpio", "-i")
	cmd.Dir, cmd.Stdin = out, bytes.NewReader(archive)
	said, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", said)

	for name, body := range contents {
		got, err := os.ReadFile(filepath.Join(out, ModuleDir, name))
		require.NoError(t, err)
		require.Equal(t, body, string(got))
	}
	st, err := os.Stat(filepath.Join(out, "init"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o755), st.Mode())
	for _, applet := range []string{"sh", "ip"} {
		to, err := os.Readlink(filepath.Join(out, "bin", applet))
		require.NoError(t, err)
		require.Equal(t, "busybox", to)
	}
	require.FileExists(t, filepath.Join(out, "bin/busybox"))
	require.FileExists(t, filepath.Join(out, "lib/a/b"))
	require.DirExists(t, filepath.Join(out, "dev"))
}

func TestInitrdNeedsItsFiles(t *testing.T) {
	dir := t.TempDir()
	require.ErrorIs(t, buildInitrd(filepath.Join(dir, "i"), Kernel{}, []program{{filepath.Join(dir, "none"), "/init"}}, nil), os.ErrNotExist)
}

func TestHeaderOfAnEntry(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, writeInitrd(&b, []entry{{name: "ab", mode: unix.S_IFREG | 0o644, body: []byte("12345")}}))
	require.Equal(t, "070701"+"00000001"+"000081a4"+"00000000"+"00000000"+"00000001"+"00000000"+"00000005"+
		strings.Repeat("00000000", 4)+"00000003"+"00000000"+"ab\x00"+"\x00\x00\x00"+"12345"+"\x00\x00\x00", b.String()[:124])
}
