//go:build guest

package verity

import (
	"archive/tar"
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/lazyerofs/lazyerofs/differ"
)

// TestUnpackedLayer: a layer that was not lazy gets a hash tree when it is unpacked,
// is sealed, and is mounted through dm-verity.
func TestUnpackedLayer(t *testing.T) {
	r := start(t, map[string]any{"dm": true, "fs": true})
	ctx := namespaces.WithNamespace(t.Context(), "test")
	conn, err := grpc.NewClient("unix://"+r.daemon.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer conn.Close()
	sn := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "lazyerofs")

	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	body := bytes.Repeat([]byte("unpacked "), 50_000)
	require.NoError(t, w.WriteHeader(&tar.Header{Name: "file", Mode: 0o644, Size: int64(len(body))}))
	_, err = w.Write(body)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	store, err := local.NewStore(t.TempDir())
	require.NoError(t, err)
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(layer.Bytes()), Size: int64(layer.Len())}
	require.NoError(t, content.WriteBlob(ctx, store, "layer", &layer, desc))

	// As containerd's unpacker asks for a layer that turns out not to be lazy.
	const key = "test/1/extract-1 sha256:x"
	mounts, err := sn.Prepare(ctx, key, "", snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: "sha256:x"}))
	require.NoError(t, err)
	_, err = differ.New(store, differ.ServiceConfig{Layer: differ.Config{Verity: true, SpoolDir: r.dir}}).Apply(ctx, desc, mounts)
	require.NoError(t, err)
	require.NoError(t, sn.Commit(ctx, "sha256:x", key))
	mounts, err = sn.View(ctx, "view", "sha256:x")
	require.NoError(t, err)
	require.Len(t, mounts, 1)
	require.Len(t, r.devices(), 1)
	got, err := os.ReadFile(filepath.Join(mounts[0].Source, "file"))
	require.NoError(t, err)
	require.True(t, bytes.Equal(body, got))
	files, err := filepath.Glob(filepath.Join(r.daemon.Root, "snapshots", "*", differ.LayerFile))
	require.NoError(t, err)
	require.Len(t, files, 1)
	_, err = os.OpenFile(files[0], os.O_RDWR, 0)
	require.ErrorIs(t, err, unix.EPERM)

	require.NoError(t, sn.Remove(ctx, "view"))
	require.NoError(t, sn.Remove(ctx, "sha256:x"))
	require.NoError(t, sn.(interface{ Cleanup(context.Context) error }).Cleanup(ctx))
	require.Eventually(t, func() bool { return len(r.devices()) == 0 }, patience, 20*time.Millisecond)
	require.NoFileExists(t, files[0])
}
