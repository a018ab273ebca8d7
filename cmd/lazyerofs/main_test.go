package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func runCLI(args ...string) (code int, stdout, stderr string) {
	var out, err bytes.Buffer
	code = run(args, &out, &err)
	return code, out.String(), err.String()
}

func TestUsageErrorsExitWith2(t *testing.T) {
	for _, args := range [][]string{
		{"nonsense"}, {"mount"}, {"mount", "only-one"}, {"umount"}, {"doctor", "--nonsense"}, {"inspect", "a", "b"},
		{"merge", "oci:absent", "-o", t.TempDir()},
	} {
		code, _, stderr := runCLI(args...)
		require.Equal(t, exitUsage, code, "%v", args)
		require.Equal(t, 1, strings.Count(stderr, "\n"), "%v: %s", args, stderr)
	}
	for _, verb := range [][]string{{"mount", "localhost:1/x", t.TempDir()}, {"inspect", "localhost:1/x"}, {"merge", "localhost:1/x", "-o", "x"}} {
		code, _, stderr := runCLI(append(verb, "--platform", "a/b/c/d")...)
		require.Equal(t, exitUsage, code, "%v", verb)
		require.Contains(t, stderr, "write it like linux/arm64")
	}
}

// TestHostsDirMustBeThere: the default need not.
func TestHostsDirMustBeThere(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for _, verb := range [][]string{
		{"verify", "oci:absent"}, {"inspect", "oci:absent"}, {"merge", "oci:absent", "-o", filepath.Join(dir, "x")},
		{"convert", "oci:absent", "oci:" + dir}, {"export", "oci:absent", "oci:" + dir}, {"mount", "localhost:1/x", dir},
	} {
		for at, want := range map[string]string{
			file:        "lazyerofs: --hosts-dir " + file + " is not a directory\n",
			file + "no": "lazyerofs: --hosts-dir \"" + file + "no\" cannot be used: stat " + file + "no: no such file or directory\n",
		} {
			code, _, stderr := runCLI(append(verb, "--hosts-dir", at)...)
			require.Equal(t, exitUsage, code, "%v", verb)
			require.Equal(t, want, stderr)
		}
		code, _, _ := runCLI(append(verb, "--hosts-dir", dir)...)
		require.Equal(t, exitError, code, "%v", verb)
	}
}

func TestFailuresExitWith1AndOneSentence(t *testing.T) {
	code, _, stderr := runCLI("inspect", "oci:"+t.TempDir())
	require.Equal(t, exitError, code)
	require.Contains(t, stderr, "no such file")
	require.Equal(t, 1, strings.Count(stderr, "\n"), stderr)
}

// TestMalformedLocationsExitWith2 has every way to write one wrong.
func TestMalformedLocationsExitWith2(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	for _, args := range [][]string{
		{"inspect", "UPPER CASE"}, {"verify", ""}, {"verify", "oci:"}, {"verify", "oci-archive:"}, {"verify", "localhost:1/a@sha256:12"},
		{"merge", "oci:", "-o", "x"}, {"export", "docker-archive:", "oci:x"}, {"mount", "UPPER CASE", t.TempDir()},
		{"convert", "oci:x", "docker-archive:f"}, {"convert", "oci:x", "oci:"}, {"convert", "oci:x", "localhost:1/a@sha256:" + strings.Repeat("a", 64)},
	} {
		code, _, stderr := runCLI(args...)
		require.Equal(t, exitUsage, code, "%q: %s", args, stderr)
		require.Contains(t, stderr, "not a usable image location: ", "%q", args)
		require.Equal(t, 1, strings.Count(stderr, "\n"), stderr)
	}
}

func TestEveryCommandHasHelpWithExamplesAndCompletions(t *testing.T) {
	for _, c := range commands() {
		require.NotEmpty(t, c.Short, c.Name())
		require.NotEmpty(t, c.Example, c.Name())
		code, out, _ := runCLI(c.Name(), "--help")
		require.Equal(t, exitOK, code)
		require.Contains(t, out, "Examples:")
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		code, out, _ := runCLI("completion", shell)
		require.Equal(t, exitOK, code)
		require.NotEmpty(t, out)
	}
}

func TestDoctorFindsADriverHere(t *testing.T) {
	code, out, stderr := runCLI("doctor", "--root", t.TempDir(), "--json")
	require.Equal(t, exitOK, code, stderr)
	var report struct{ Driver string }
	require.NoError(t, json.Unmarshal([]byte(out), &report))
	require.Equal(t, "fanotify", report.Driver)
	code, out, _ = runCLI("doctor", "--root", t.TempDir())
	require.Equal(t, exitOK, code)
	require.Contains(t, out, "served by the fanotify driver")
}

func TestWorkDirs(t *testing.T) {
	home := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", home)
	work, keep, err := workDirs("")
	require.NoError(t, err)
	require.Equal(t, home+"/lazyerofs/convert", work)
	require.Equal(t, work+"/layers", keep)
	require.DirExists(t, work)
	work, keep, err = workDirs(home + "/mine")
	require.NoError(t, err)
	require.Equal(t, home+"/mine/layers", keep)
	require.DirExists(t, work)
	_, _, err = workDirs("/dev/null/x")
	require.ErrorContains(t, err, "/dev/null")
	for _, none := range []string{"/dev/null/x", ""} {
		t.Setenv("XDG_CACHE_HOME", none)
		t.Setenv("HOME", "")
		work, keep, err = workDirs("")
		require.NoError(t, err, "a home that cannot be written to is no reason not to convert")
		require.Empty(t, work)
		require.Empty(t, keep)
	}
}
