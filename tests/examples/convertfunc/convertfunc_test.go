package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, testenv.IgnoreRegistry()) }

// TestConvertInsideContainerd converts an image in a real containerd both ways,
// deletes the source there, and looks at what is left once it is pushed.
func TestConvertInsideContainerd(t *testing.T) {
	testenv.RequireRoot(t)
	recipe, err := testenv.Tiny()
	require.NoError(t, err)
	img, err := recipe.Build(t.Context(), func(s string) { t.Log(s) })
	require.NoError(t, err)
	reg, err := testenv.StartRegistry(t.TempDir())
	require.NoError(t, err)
	defer func() { require.NoError(t, reg.Close()) }()
	require.NoError(t, img.Push(t.Context(), reg.Addr()+"/tiny:plain"))
	c, err := testenv.StartContainerd(t.Context(), filepath.Join(t.TempDir(), "c"), testenv.ContainerdOptions{})
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Stop()) }()

	source := reg.Addr() + "/tiny:plain"
	for _, way := range []string{"image", "layers"} {
		_, err = c.Ctr(t.Context(), "images", "pull", "--plain-http", "--local", source)
		require.NoError(t, err)
		target := reg.Addr() + "/tiny:" + way
		args := []string{"-address", c.Address, "-namespace", c.Namespace, source, target}
		if way == "layers" {
			args = append([]string{"-layers"}, args...)
		}
		var out bytes.Buffer
		require.NoError(t, run(t.Context(), args, &out))
		require.True(t, strings.HasPrefix(out.String(), target+"@sha256:"), out.String())

		// The collector runs before the deletion returns; only labels keep what is new.
		_, err = c.Ctr(t.Context(), "images", "remove", "--sync", source)
		require.NoError(t, err)
		_, err = c.Ctr(t.Context(), "images", "push", "--plain-http", "--local", target)
		require.NoError(t, err)
		report, err := exec.CommandContext(t.Context(), testenv.MustTool(t, "lazyerofs"), "verify", "-q", "--plain-http", "--work-dir", t.TempDir(), target).CombinedOutput()
		require.NoError(t, err, "%s", report)
		require.Equal(t, len(img.Layers), strings.Count(string(report), "native"), "%s", report)
	}

	require.ErrorContains(t, run(t.Context(), []string{"-address", c.Address, "-namespace", c.Namespace, "absent:1", "x:1"}, os.Stdout), "absent:1")
	require.ErrorContains(t, run(t.Context(), []string{"one"}, os.Stdout), "usage")
}
