package main

import (
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

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
