package wire

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/cmd/internal/config"
	"github.com/lazyerofs/lazyerofs/fs/fdstore"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// rooted is a configuration with a root of its own.
func rooted(t *testing.T) config.Node {
	c := config.DefaultNode()
	c.Root = t.TempDir()
	return c
}

// kept is the store of a keeper that takes everything and keeps nothing.
func kept(t *testing.T) *fdstore.Store {
	t.Helper()
	at := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: at, Net: "unixgram"})
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for b := make([]byte, fdstore.MaxMessage); ; {
			// Rights that are not taken are closed, which is the answer to a barrier.
			if _, _, _, _, err := conn.ReadMsgUnix(b, nil); err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		require.NoError(t, conn.Close())
		<-done
	})
	t.Setenv("NOTIFY_SOCKET", at)
	t.Setenv("FDSTORE", "9")
	store, left, err := Inherit()
	require.NoError(t, err)
	require.NotNil(t, store)
	require.Empty(t, left)
	return store
}

// miss prepares a layer and returns why it is not lazy.
func miss(t *testing.T, n *Node) string {
	t.Helper()
	key := fmt.Sprintf("default/1/extract-%d sha256:x", rand.Int())
	_, err := n.Snapshots.Prepare(t.Context(), key, "", snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: "sha256:x"}))
	require.NoError(t, err)
	info, err := n.Snapshots.Stat(t.Context(), key)
	require.NoError(t, err)
	return info.Labels["io.lazyerofs.v1/miss"]
}

func TestInheritWithoutAKeeper(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	store, left, err := Inherit()
	require.NoError(t, err)
	require.Nil(t, store)
	require.Empty(t, left)
}

// Without a keeper every layer is a miss, and the reason says what to do for the
// one that asks: the daemon, or containerd.
func TestNobodyKeepsDescriptors(t *testing.T) {
	testenv.RequireRoot(t)
	for inProcess, want := range map[bool]string{false: "--supervise or under systemd", true: "lazyerofsd --supervise -- containerd"} {
		n, err := New(t.Context(), rooted(t), Options{Metrics: prometheus.NewRegistry(), InProcess: inProcess})
		require.NoError(t, err)
		n.Restore(t.Context())
		require.Contains(t, miss(t, n), want)
		require.NoError(t, n.End(t.Context()))
	}
}

// A service manager that is told that we are ready need not keep descriptors;
// containerd.service as it is shipped does not ask for it. No layer is tried then.
func TestServiceManagerWithoutAStore(t *testing.T) {
	testenv.RequireRoot(t)
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "none"))
	t.Setenv("FDSTORE", "")
	store, left, err := Inherit()
	require.NoError(t, err)
	n, err := New(t.Context(), rooted(t), Options{Keeper: store, Inherited: left, Metrics: prometheus.NewRegistry(), InProcess: true})
	require.NoError(t, err)
	require.Contains(t, miss(t, n), "give containerd.service a descriptor store")
	require.Contains(t, miss(t, n), "$FDSTORE is not set")
	require.NoError(t, n.End(t.Context()))
}

// Inside of containerd no driver serves whose readers cannot be killed.
func TestInProcessOnlyFanotify(t *testing.T) {
	testenv.RequireRoot(t)
	c := rooted(t)
	c.Driver.Name = "fuseblock"
	n, err := New(t.Context(), c, Options{Keeper: kept(t), Metrics: prometheus.NewRegistry(), InProcess: true})
	require.NoError(t, err)
	require.Len(t, n.servers, 1)
	require.Equal(t, "fanotify", n.servers[0].Name())
	require.Contains(t, miss(t, n), "inside of containerd only fanotify serves")
	require.NoError(t, n.End(t.Context()))

	n, err = New(t.Context(), c, Options{Keeper: kept(t), Metrics: prometheus.NewRegistry()})
	require.NoError(t, err)
	require.Greater(t, len(n.servers), 1)
	require.NoError(t, n.End(t.Context()))
}

// A root has one process, and a start that fails leaves nothing open.
func TestRootIsLocked(t *testing.T) {
	testenv.RequireRoot(t)
	c := rooted(t)
	n, err := New(t.Context(), c, Options{Metrics: prometheus.NewRegistry()})
	require.NoError(t, err)
	before, err := testenv.Descriptors()
	require.NoError(t, err)
	_, err = New(t.Context(), c, Options{Metrics: prometheus.NewRegistry()})
	require.ErrorContains(t, err, "another lazyerofsd serves")
	_, err = New(t.Context(), rooted(t), Options{Metrics: n.o.Metrics})
	require.ErrorContains(t, err, "registering", "metrics are there once")
	after, err := testenv.Descriptors()
	require.NoError(t, err)
	require.Subset(t, before, after, "what was open before may be closed by now")
	require.NoError(t, n.End(t.Context()))
}

func TestEndsRunBackwards(t *testing.T) {
	var e Ends
	var order []int
	for i := range 3 {
		e.Add(func(context.Context) error {
			order = append(order, i)
			return errors.New("x")
		})
	}
	require.Error(t, e.Run(t.Context()))
	require.Equal(t, []int{2, 1, 0}, order)
}

// What a predecessor left is handed out once.
func TestInheritance(t *testing.T) {
	f, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer f.Close()
	in := Inheritance{"fanotify-writer-abc": {f}}
	require.True(t, in.has("fanotify"))
	require.False(t, in.has("fuse"))
	require.Equal(t, f, in.writer("abc"))
	require.Nil(t, in.writer("abc"))
	require.Nil(t, in.writer("other"))
}
