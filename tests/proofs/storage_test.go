package proofs

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// command runs a program of the distribution.
func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	require.NoError(t, err, "%s %s: %s", name, strings.Join(args, " "), out)
	return strings.TrimSpace(string(out))
}

// smallDisk is a node whose daemon keeps everything on an ext4 of 64 MB.
func smallDisk(t *testing.T) (n *node, root string) {
	t.Helper()
	dir := scratch(t)
	testenv.VerifyNoLeaks(t, dir)
	image := filepath.Join(dir, "disk")
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, 64<<20))
	command(t, "mkfs.ext4", "-q", "-m", "0", image)
	root = filepath.Join(dir, "d", "root")
	require.NoError(t, os.MkdirAll(root, 0o700))
	command(t, "mount", "-o", "loop", image, root) // ends with the node's other mounts
	return startNodeIn(t, dir, nil), root
}

// reached is what the daemon fetched of an image before the disk failed: a file
// of the top layer that is read whole before, and one that is not.
func (n *node) reached(img *image) {
	n.t.Helper()
	n.pull(img.ref)
	require.Equal(n.t, "/etc/kept: one\n", n.run(img.ref, "before", "/hello", "/etc/kept"))
}

// The disk is full: what is missing cannot be kept, so it cannot be read; what is
// there can. As soon as there is space, the next read succeeds.
func TestFullDisk(t *testing.T) {
	s := openShop(t, scratch(t))
	img := s.convert(s.layered(), "full", zstdForm)
	n, root := smallDisk(t)
	n.reached(img)

	filler := filepath.Join(root, "filler")
	fill(t, filler)
	bad := pages(t, n.find("lines"), lines())
	require.NotEmpty(t, bad, "the disk was not full")
	kept, err := os.ReadFile(n.find("etc/kept"))
	require.NoError(t, err)
	require.Equal(t, "one\n", string(kept))
	require.Contains(t, n.daemonLog(), "no space left")

	require.NoError(t, os.Remove(filler))
	require.Empty(t, pages(t, n.find("lines"), lines()), "the disk has space again")
}

// fill takes every free block of the file system.
func fill(t *testing.T, name string) {
	t.Helper()
	f, err := os.Create(name)
	require.NoError(t, err)
	defer f.Close()
	buf := make([]byte, 4096)
	for {
		if _, err := f.Write(buf); err != nil {
			require.ErrorIs(t, err, unix.ENOSPC)
			return
		}
	}
}

// The cache turns read-only, as ext4 does after an error of its device: reads of
// missing data fail, nothing else does, and nothing wrong is read.
func TestReadOnlyCache(t *testing.T) {
	s := openShop(t, scratch(t))
	img := s.convert(s.layered(), "readonly", zstdForm)
	n, root := smallDisk(t)
	n.reached(img)

	command(t, "mount", "-o", "remount,abort", root)
	bad := pages(t, n.find("lines"), lines())
	require.NotEmpty(t, bad, "the cache could be written")
	require.NotEmpty(t, pages(t, n.find("lines"), lines()), "an error must not turn into data")
	kept, err := os.ReadFile(n.find("etc/kept"))
	require.NoError(t, err)
	require.Equal(t, "one\n", string(kept))
	require.Contains(t, n.daemonLog(), "read-only file system")
}

// The registry takes requests and does not answer. A read waits for as long as
// the budget says and fails then; the next one asks again, and one that finds
// the registry alive before its budget is gone never knew.
func TestHangingRegistry(t *testing.T) {
	s := openShop(t, scratch(t))
	img := s.convert(s.layered(), "hang", zstdForm)
	desc, _ := s.top(img)
	hanging := make(chan struct{})
	asked := make(chan struct{}, 100)
	awake := make(chan chan struct{}, 1)
	awake <- nil
	s.between(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			gate := <-awake
			awake <- gate
			if gate != nil && strings.HasSuffix(r.URL.Path, desc.Digest.String()) {
				asked <- struct{}{}
				select {
				case <-gate:
				case <-r.Context().Done():
					return
				}
			}
			next.ServeHTTP(w, r)
		})
	})
	n := startNode(t, map[string]any{"registry": map[string]any{"retry_budget": "3s"}})
	n.reached(img)

	<-awake
	awake <- hanging
	_, err := os.ReadFile(n.find("lines"))
	require.ErrorIs(t, err, unix.EIO)
	require.Contains(t, n.daemonLog(), "gave up after 3s without data")

	for len(asked) > 0 {
		<-asked
	}
	read := make(chan error, 1)
	go func() {
		content, err := os.ReadFile(n.find("lines"))
		if err == nil && string(content) != lines() {
			err = os.ErrInvalid
		}
		read <- err
	}()
	<-asked // the read waits for the registry
	close(hanging)
	require.NoError(t, <-read)
}
