package e2e

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// The daemon is killed while it unpacks a layer: nothing of that layer is there
// afterwards, and the same pull succeeds. A stream processor that waits in the
// middle of the layer says when.
func TestDaemonKilledWhileItUnpacks(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	require.NoError(t, unix.Mkfifo(fifo, 0o600))
	const sealed = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"
	n := start(t, map[string]any{"stream_processors": map[string]any{"slow": map[string]any{
		"accepts": []string{sealed}, "returns": ocispec.MediaTypeImageLayerGzip, "path": "sh",
		"args": []string{"-c", "head -c 512; [ ! -p " + fifo + " ] || read wait <" + fifo + "; cat"},
	}}})
	_, image := n.tiny()
	ref := n.relayer(image, "slow", func(blob []byte, _ ocispec.Descriptor) (string, []byte, digest.Digest) { return sealed, blob, "" })

	pulled := make(chan error, 1)
	go func() { // ends with the daemon
		_, err := n.Ctr(t.Context(), "images", "pull", "--plain-http", "--snapshotter", "lazyerofs", ref)
		pulled <- err
	}()
	var waiting *os.File
	require.Eventually(t, func() bool {
		var err error
		waiting, err = os.OpenFile(fifo, os.O_WRONLY|unix.O_NONBLOCK, 0) // fails until somebody reads
		return err == nil
	}, time.Minute, time.Millisecond)
	pid, err := n.daemon.Child(t.Context(), 0)
	require.NoError(t, err)
	require.NoError(t, unix.Kill(pid, unix.SIGKILL))
	require.Error(t, <-pulled)
	require.NoError(t, os.Remove(fifo))
	require.NoError(t, waiting.Close())
	_, err = n.daemon.Child(t.Context(), pid)
	require.NoError(t, err)

	require.Empty(t, n.layerFiles(), "half a layer is visible")
	require.Empty(t, n.snapshots())
	n.pull(ref)
	require.Equal(t, testenv.TinyOutput, n.run(ref, "one", image.Ready...))
	require.Len(t, n.layerFiles(), len(image.Layers))
	spool, err := os.ReadDir(filepath.Join(n.daemon.Root, "spool"))
	require.NoError(t, err)
	require.Empty(t, spool)
}

// layerFiles lists files of unpacked layers, under whatever name.
func (n *node) layerFiles() (found []string) {
	n.t.Helper()
	dir := filepath.Join(n.daemon.Root, "snapshots")
	require.NoError(n.t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil // containerd removes what it began meanwhile
		}
		if err == nil && d.Type().IsRegular() && d.Name() != differ.MarkerFile && !strings.Contains(path, "/fs/") {
			found = append(found, path)
		}
		return err
	}))
	return found
}
