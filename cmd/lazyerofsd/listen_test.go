package main

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/cmd/internal/config"
	"github.com/lazyerofs/lazyerofs/cmd/internal/wire"
	"github.com/lazyerofs/lazyerofs/fs/fdstore"
)

// notified returns a store whose keeper writes down the messages that it gets and
// answers barriers.
func notified(t *testing.T) (*fdstore.Store, func() []fdstore.Message) {
	t.Helper()
	at := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: at, Net: "unixgram"})
	require.NoError(t, err)
	t.Setenv("NOTIFY_SOCKET", at)
	t.Setenv("FDSTORE", "9")
	store, err := fdstore.New()
	require.NoError(t, err)
	var got []fdstore.Message
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, fdstore.MaxMessage)
		for {
			// Rights that are not taken are closed, which is the answer to a barrier.
			n, _, _, _, err := conn.ReadMsgUnix(b, nil)
			if err != nil {
				return
			}
			if m, err := fdstore.Parse(b[:n]); err == nil && !m.Barrier {
				got = append(got, m)
			}
		}
	}()
	end := func() []fdstore.Message {
		require.NoError(t, conn.Close())
		<-done
		return got
	}
	return store, end
}

// socketAt is a listening socket as a predecessor leaves it.
func socketAt(t *testing.T, path string) *os.File {
	t.Helper()
	_ = os.Remove(path) // as whoever binds it anew does
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return f
}

// Of a socket unit's socket and one that we kept before, which has lost its name to
// the other, the unit's is served, and the store lets go of ours.
func TestInheritListener(t *testing.T) {
	remove := []fdstore.Message{{Remove: true, Name: fdstore.ListenerName}}
	for name, test := range map[string]struct {
		at    []string // of what was left, in this order
		found bool
		said  []fdstore.Message
	}{
		"none":                       {},
		"one":                        {at: []string{"s"}, found: true},
		"unit and kept":              {at: []string{"s", "s"}, found: true, said: remove},
		"unit elsewhere and kept":    {at: []string{"x", "s"}, found: true},
		"kept at an address of old":  {at: []string{"x"}, said: remove},
		"unit and an address of old": {at: []string{"s", "x"}, found: true, said: remove},
	} {
		t.Run(name, func(t *testing.T) {
			store, end := notified(t)
			dir := t.TempDir()
			d := &daemon{c: config.Config{Address: filepath.Join(dir, "s")}, notify: store, left: wire.Inheritance{}}
			// A unit's socket is made last, and comes first.
			for _, at := range slices.Backward(test.at) {
				d.left[fdstore.ListenerName] = slices.Insert(d.left[fdstore.ListenerName], 0, socketAt(t, filepath.Join(dir, at)))
			}
			l := d.inheritListener(t.Context())
			require.Equal(t, test.found, l != nil)
			if l != nil {
				dialer := net.Dialer{Timeout: time.Minute}
				conn, err := dialer.DialContext(t.Context(), "unix", d.c.Address)
				require.NoError(t, err)
				served, err := l.Accept()
				require.NoError(t, err)
				require.NoError(t, served.Close())
				require.NoError(t, conn.Close())
				require.NoError(t, l.Close())
			}
			require.Equal(t, test.said, end())
		})
	}
}
