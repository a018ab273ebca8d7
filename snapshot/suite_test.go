package snapshot

import (
	"context"
	"net"
	"path/filepath"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	_ "github.com/containerd/containerd/v2/pkg/testutil" // -test.root
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// serve puts s behind a socket, as containerd sees it.
func serve(sock string, s snapshots.Snapshotter) (snapshots.Snapshotter, func() error, error) {
	l, err := net.Listen("unix", sock)
	if err != nil {
		return nil, nil, err
	}
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(s))
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	conn, err := grpc.NewClient("unix://"+sock, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, err
	}
	stop := func() error {
		if err := conn.Close(); err != nil {
			return err
		}
		server.Stop()
		return <-done
	}
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "lazyerofs"), stop, nil
}

// TestWalkOfAnEmptyStore: a client cannot tell the store's error from any other, for
// the service does not hand on its class.
func TestWalkOfAnEmptyStore(t *testing.T) {
	dir := t.TempDir()
	s, err := New(filepath.Join(dir, "r"), newFakeFS(t), Config{})
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()
	p, stop, err := serve(filepath.Join(dir, "sock"), s)
	require.NoError(t, err)
	defer func() { require.NoError(t, stop()) }()
	none := func(context.Context, snapshots.Info) error { return errdefs.ErrNotFound }
	require.NoError(t, p.Walk(t.Context(), none))
	_, err = s.Prepare(t.Context(), "one", "")
	require.NoError(t, err)
	require.ErrorIs(t, s.Walk(t.Context(), none), errdefs.ErrNotFound, "the caller's own error")
	require.NoError(t, s.Remove(t.Context(), "one"))
	require.NoError(t, p.Walk(t.Context(), none))
}

// The suite runs as "erofs": the name tells it which overlayfs limits to allow for.
func TestSuite(t *testing.T) {
	files := newFakeFS(t)
	testsuite.SnapshotterSuite(t, "erofs", func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		s, err := New(filepath.Join(root, "r"), files, Config{})
		if err != nil {
			return nil, nil, err
		}
		p, stop, err := serve(filepath.Join(root, "sock"), s)
		if err != nil {
			return nil, nil, err
		}
		return p, func() error {
			err := s.Cleanup(context.Background())
			require.NoError(t, err)
			if err := stop(); err != nil {
				return err
			}
			return s.Close()
		}, nil
	})
}
