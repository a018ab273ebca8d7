package testenv

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// pushed is the tiny image in a registry of its own behind a line.
func pushed(t *testing.T) (reg *Registry, ref string, image *Image) {
	t.Helper()
	recipe, err := Tiny()
	require.NoError(t, err)
	image, err = recipe.Build(t.Context(), func(s string) { t.Log("building", s) })
	require.NoError(t, err)
	reg = startRegistry(t)
	require.NoError(t, image.Push(t.Context(), reg.Addr()+"/tiny:latest"))
	line := shape(t, reg.Addr(), Profile{RTT: time.Millisecond})
	reg.Reset()
	return reg, line.Addr() + "/tiny:latest", image
}

func startContainerd(t *testing.T, o ContainerdOptions) *Containerd {
	t.Helper()
	RequireRoot(t)
	dir := t.TempDir()
	VerifyNoLeaks(t, dir)
	c, err := StartContainerd(t.Context(), dir, o)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, c.Stop())
		require.NoDirExists(t, c.state)
		left, err := filepath.Glob("/sys/fs/cgroup/*/" + c.Namespace)
		require.NoError(t, err)
		require.Empty(t, left)
	})
	return c
}

func TestContainerdRunsAnImageFromTheRegistry(t *testing.T) {
	reg, ref, image := pushed(t)
	c := startContainerd(t, ContainerdOptions{})
	_, err := c.Ctr(t.Context(), "images", "pull", ref)
	require.NoError(t, err)
	out, err := c.Run(t.Context(), append([]string{ref, "one"}, image.Ready...)...)
	require.NoError(t, err)
	require.Equal(t, TinyOutput, out)

	// The registry saw every layer, whole, once.
	require.NoError(t, reg.Settle(t.Context(), 0))
	got := map[digest.Digest]int64{}
	for _, r := range reg.Log() {
		if r.Method == http.MethodGet && r.Blob() != "" {
			got[digest.Digest(r.Blob())] += r.Bytes
		}
	}
	for _, l := range image.Layers {
		require.Equal(t, l.Size, got[l.Digest], l.Digest)
	}
}

// All that a container wrote is there, though it ends at once after more than
// pipes hold and the machine is busy.
func TestRunReturnsTheWholeOutput(t *testing.T) {
	_, ref, _ := pushed(t)
	c := startContainerd(t, ContainerdOptions{})
	_, err := c.Ctr(t.Context(), "images", "pull", ref)
	require.NoError(t, err)
	large := filepath.Join(t.TempDir(), "large")
	want := strings.Repeat("0123456789abcde\n", 256<<10)
	require.NoError(t, os.WriteFile(large, []byte(want), 0o644))
	g, ctx := errgroup.WithContext(t.Context())
	for i := range 8 {
		g.Go(func() error {
			got, err := c.Run(ctx, "--mount", "type=bind,src="+large+",dst=/etc/kept,options=bind", ref, fmt.Sprint("box", i), "/hello", "/etc/kept")
			if err == nil && got != "/etc/kept: "+want {
				err = fmt.Errorf("%d bytes of %d", len(got), len("/etc/kept: ")+len(want))
			}
			return err
		})
	}
	require.NoError(t, g.Wait())
}

// TestContainerdStopEndsWhatRuns: a container that never ends, then a daemon
// that was killed over it.
func TestContainerdStopEndsWhatRuns(t *testing.T) {
	for _, how := range []string{"asked", "killed"} {
		t.Run(how, func(t *testing.T) {
			_, ref, _ := pushed(t)
			c := startContainerd(t, ContainerdOptions{})
			_, err := c.Ctr(t.Context(), "images", "pull", ref)
			require.NoError(t, err)
			// A FIFO without a writer holds the reader for ever.
			fifo := filepath.Join(t.TempDir(), "fifo")
			require.NoError(t, unix.Mkfifo(fifo, 0o600))
			_, err = c.Ctr(t.Context(), "run", "--detach", "--null-io", "--mount", "type=bind,src="+fifo+",dst=/etc/kept,options=bind", ref, "held", "/hello", "/etc/kept", fifo)
			require.NoError(t, err)
			tasks, err := c.Ctr(t.Context(), "tasks", "list")
			require.NoError(t, err)
			require.Contains(t, tasks, "RUNNING")
			if how == "killed" {
				require.NoError(t, c.proc.cmd.Process.Kill())
				<-c.proc.done
			}
			require.NoError(t, c.Stop())
			pids, err := Processes(fifo) // the last argument, which it never gets to
			require.NoError(t, err)
			require.Empty(t, pids)
		})
	}
}

func TestCtrSaysWhatFailed(t *testing.T) {
	c := startContainerd(t, ContainerdOptions{})
	_, err := c.Ctr(t.Context(), "images", "pull", "127.0.0.1:1/none:latest")
	require.ErrorContains(t, err, "connection refused")
}

func TestCancelledRunLeavesNothing(t *testing.T) {
	_, ref, _ := pushed(t)
	c := startContainerd(t, ContainerdOptions{})
	_, err := c.Ctr(t.Context(), "images", "pull", ref)
	require.NoError(t, err)
	fifo := filepath.Join(t.TempDir(), "fifo")
	require.NoError(t, unix.Mkfifo(fifo, 0o600))
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() {
		_, err := c.Run(ctx, "--mount", "type=bind,src="+fifo+",dst=/etc/kept,options=bind", ref, "held", "/hello", "/etc/kept", fifo)
		ran <- err
	}()
	require.Eventually(t, func() bool {
		out, err := c.Ctr(t.Context(), "tasks", "list")
		return err == nil && strings.Contains(out, "RUNNING")
	}, 30*time.Second, 10*time.Millisecond)
	cancel()
	require.Error(t, <-ran)
}

func TestStartContainerdReportsABadConfiguration(t *testing.T) {
	RequireRoot(t)
	dir := t.TempDir()
	VerifyNoLeaks(t, dir)
	state, err := NewState()
	require.NoError(t, err)
	_, err = StartContainerd(t.Context(), dir, ContainerdOptions{State: state, Config: table{"version": 99}})
	require.ErrorContains(t, err, "containerd")
	require.ErrorContains(t, err, "version")
	require.NoDirExists(t, state)
}

func TestMergeReplacesListsAndMergesTables(t *testing.T) {
	dst := table{"a": table{"x": 1, "y": []any{1}}, "b": 1}
	merge(dst, table{"a": table{"y": []any{2}, "z": 3}, "c": table{"n": 1}})
	require.Equal(t, table{"a": table{"x": 1, "y": []any{2}, "z": 3}, "b": 1, "c": table{"n": 1}}, dst)
}

func TestPackedLayerSaysWhatOverlayfsSays(t *testing.T) {
	recipe, err := Tiny()
	require.NoError(t, err)
	image, err := recipe.Build(t.Context(), func(string) {})
	require.NoError(t, err)
	again, err := recipe.Build(t.Context(), func(s string) { t.Error("built again:", s) })
	require.NoError(t, err)
	require.Equal(t, image.Manifest.Digest, again.Manifest.Digest)
	names := tarNames(t, filepath.Join(image.Dir, "blobs/sha256", image.Layers[2].Digest.Encoded()))
	require.Equal(t, []string{"etc/", "etc/.wh.deleted", "old/", "old/.wh..wh..opq", "old/shown"}, names)
}

func TestBuildReportsAFailingStep(t *testing.T) {
	RequireRoot(t)
	dir := t.TempDir()
	_, err := buildLayer(t.Context(), Step{Name: "fails", Script: "echo it is broken >&2; exit 3\n"}, nil, filepath.Join(dir, "layer"))
	require.ErrorContains(t, err, "it is broken")
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
	mounts, err := Mounts(dir)
	require.NoError(t, err)
	require.Empty(t, mounts)
}

func TestOSRelease(t *testing.T) {
	file := filepath.Join(t.TempDir(), "os-release")
	require.NoError(t, os.WriteFile(file, []byte("NAME=\"X Y\"\nID=debian\nVERSION_CODENAME='bookworm'\n"), 0o644))
	got, err := osRelease(file)
	require.NoError(t, err)
	require.Equal(t, "bookworm", got["VERSION_CODENAME"])
	require.NoError(t, os.WriteFile(file, []byte("ID=other\n"), 0o644))
	_, err = osRelease(file)
	require.ErrorContains(t, err, "names no suite")
}
