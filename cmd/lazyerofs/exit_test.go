package main

import (
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// TestExitCodesTellScriptsWhatWentWrong has one conversion for each code of the
// help text.
func TestExitCodesTellScriptsWhatWentWrong(t *testing.T) {
	testenv.RequireRoot(t)
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	status := http.StatusUnauthorized
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead && status != http.StatusUnauthorized {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.WriteHeader(status)
	}))
	defer server.Close()
	addr := strings.TrimPrefix(server.URL, "http://")
	full := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", full, "tmpfs", 0, "size=4k"))
	defer func() { require.NoError(t, unix.Unmount(full, 0)) }()
	from := "oci:" + tinyImage(t).Dir

	convert := func(want int, text string, args ...string) {
		t.Helper()
		code, out, stderr := runCLI(append([]string{"convert", "-q"}, args...)...)
		require.Equal(t, want, code, stderr)
		require.Empty(t, out)
		require.Contains(t, stderr, text)
		require.Equal(t, 1, strings.Count(stderr, "\n"), stderr)
	}
	to := "oci:" + filepath.Join(t.TempDir(), "x")
	convert(exitUsage, "level 99 is not between 1 and 22", "--level", "99", from, to)
	convert(exitUsage, "not a multiple of 4096", "--chunk-size", "5000", from, to)
	convert(exitUsage, "write it like linux/arm64", "--platform", "a/b/c/d", from, to)
	convert(exitPlatform, "has no image for linux/s390x", "--platform", "linux/s390x", from, to)
	convert(exitCredentials, "log in with \"docker login "+addr+"\"", from, addr+"/x:1")
	status = http.StatusForbidden
	convert(exitRefused, "refuses the push of x with 403 Forbidden", from, addr+"/x:1")
	convert(exitNoSpace, "no space left on the disk that holds "+full, "--work-dir", full, from, to)
	convert(exitNoSpace, "no space left on the disk that holds "+full, from, "oci:"+full)
	convert(exitError, "no such file", "oci:/nonexistent", to)
}

// TestMergeOntoAFullDisk: each place that it writes to may be full.
func TestMergeOntoAFullDisk(t *testing.T) {
	testenv.RequireRoot(t)
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	full, dir := t.TempDir(), t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", full, "tmpfs", 0, "size=4k"))
	defer func() { require.NoError(t, unix.Unmount(full, 0)) }()
	require.NoError(t, os.WriteFile(filepath.Join(full, "filler"), make([]byte, 4<<10), 0o600))
	lazy := "oci:" + filepath.Join(dir, "lazy")
	code, _, stderr := runCLI("convert", "-q", "oci:"+tinyImage(t).Dir, lazy)
	require.Equal(t, exitOK, code, stderr)
	for file, args := range map[string][]string{
		"m":                    {"-o", filepath.Join(full, "m")},
		"[0-9a-f]{64}\\.erofs": {"-o", filepath.Join(dir, "m"), "--data", full},
	} {
		code, out, stderr := runCLI(append([]string{"merge", lazy}, args...)...)
		require.Equal(t, exitNoSpace, code, stderr)
		require.Empty(t, out)
		require.Regexp(t, "^lazyerofs: merging "+lazy+": .*no space left on the disk that holds "+full+"/"+file+"; free some\n$", stderr)
		left, err := os.ReadDir(full)
		require.NoError(t, err)
		require.Len(t, left, 1)
		require.NoFileExists(t, filepath.Join(dir, "m"), "the metadata comes when all data is there")
	}
}

func TestFullDisksAreNamed(t *testing.T) {
	at := func(path string) error {
		return fmt.Errorf("doing: %w", &fs.PathError{Op: "write", Path: path, Err: unix.EDQUOT})
	}
	for _, c := range []struct {
		err        error
		work, want string
	}{
		{at("/work/x"), "/work", "no space left on the disk that holds /work/x; free some, or name a directory on another disk with --work-dir"},
		{at("/works/x"), "/work", "no space left on the disk that holds /works/x; free some"},
		{at(os.TempDir() + "/x"), "", "no space left on the disk that holds " + os.TempDir() + "/x; free some, or name a directory on another disk with --work-dir"},
		{unix.ENOSPC, "/work", "no space left on the disk; free some, or name a directory on another disk with --work-dir"},
	} {
		err := converter.NoSpace(c.err, c.work)
		require.EqualError(t, err, c.want)
		require.ErrorIs(t, err, c.err)
		require.Equal(t, exitNoSpace, exitCode(err))
	}
	require.Equal(t, unix.EIO, converter.NoSpace(unix.EIO, ""))
}
