package testenv

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestLinkSharesItsRate(t *testing.T) {
	l := link{bytesPerSecond: 1_000_000}
	now := time.Unix(1000, 0)
	// An idle line owes at most the slack.
	require.Equal(t, now.Add(10*time.Millisecond-slack), l.reserve(now, 10_000))
	// The next sender queues behind the first, whoever it is.
	require.Equal(t, now.Add(30*time.Millisecond-slack), l.reserve(now, 20_000))
	// A late sender catches up by the slack and no further.
	later := now.Add(time.Hour)
	require.Equal(t, later.Add(time.Millisecond-slack), l.reserve(later, 1000))
}

func TestLinkUnlimited(t *testing.T) {
	l := link{}
	now := time.Unix(1000, 0)
	require.Equal(t, now, l.reserve(now, 1<<30))
}

func shape(t *testing.T, target string, p Profile) *Shaper {
	t.Helper()
	s, err := StartShaper(target, p)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, s.Close())
		require.NoError(t, s.Close(), "closing twice")
	})
	return s
}

func TestShaperKeepsBytes(t *testing.T) {
	defer verifyNoGoroutines(t, goleak.IgnoreCurrent())
	body := make([]byte, 3<<20+17)
	_, err := rand.Read(body)
	require.NoError(t, err)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		_, err := io.Copy(sum, r.Body)
		if err != nil || !bytes.Equal(sum.Sum(nil), sha256sum(body)) {
			http.Error(w, "the request changed on its way", http.StatusBadRequest)
			return
		}
		_, _ = w.Write(body)
	}))
	defer srv.Close()
	s, err := StartShaper(srv.Listener.Addr().String(), Profile{RTT: 2 * time.Millisecond, BytesPerSecond: 200_000_000})
	require.NoError(t, err)

	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // or the last may take the first's
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			resp, err := client.Post("http://"+s.Addr(), "application/octet-stream", bytes.NewReader(body))
			if !noError(t, err) {
				return
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			noError(t, err)
			if resp.StatusCode != http.StatusOK || !bytes.Equal(got, body) {
				t.Errorf("status %d, %d bytes", resp.StatusCode, len(got))
			}
		})
	}
	wg.Wait()
	client.CloseIdleConnections()
	require.GreaterOrEqual(t, s.Received(), int64(4*len(body)))
	require.GreaterOrEqual(t, s.Sent(), int64(4*len(body)))
	require.LessOrEqual(t, s.Received(), int64(4*len(body)+8192), "counted twice")
	require.EqualValues(t, 4, s.Conns())
	require.NoError(t, s.Close())
}

func noError(t *testing.T, err error) bool {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
	return err == nil
}

func sha256sum(b []byte) []byte {
	sum := sha256.Sum256(b)
	return sum[:]
}

// TestShaperHalfClose: a client that has sent all still gets its answer.
func TestShaperHalfClose(t *testing.T) {
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			done <- err
			return
		}
		defer conn.Close()
		got, err := io.ReadAll(conn) // ends only by the half-close
		if err == nil {
			_, err = conn.Write(append([]byte("got "), got...))
		}
		done <- err
	}()
	t.Cleanup(func() { listener.Close() })

	s := shape(t, listener.Addr().String(), Profile{RTT: time.Millisecond})
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", s.Addr())
	require.NoError(t, err)
	defer conn.Close()
	_, err = conn.Write([]byte("all"))
	require.NoError(t, err)
	require.NoError(t, conn.(*net.TCPConn).CloseWrite())
	got, err := io.ReadAll(conn)
	require.NoError(t, err)
	require.Equal(t, "got all", string(got))
	require.NoError(t, <-done)
}

// TestShaperCloseEndsStuckConnections: neither side reads or writes any more.
func TestShaperCloseEndsStuckConnections(t *testing.T) {
	defer verifyNoGoroutines(t, goleak.IgnoreCurrent())
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	s, err := StartShaper(listener.Addr().String(), Profile{RTT: time.Hour, BytesPerSecond: 1})
	require.NoError(t, err)
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", s.Addr())
	require.NoError(t, err)
	defer conn.Close()
	_, err = conn.Write(make([]byte, 1<<20))
	require.NoError(t, err)
	require.NoError(t, s.Close())
	_, err = conn.Read(make([]byte, 1))
	require.Error(t, err)
}

func TestShaperTargetAbsent(t *testing.T) {
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := listener.Addr().String()
	require.NoError(t, listener.Close())
	s := shape(t, addr, Profile{})
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", s.Addr())
	require.NoError(t, err)
	defer conn.Close()
	_, err = conn.Read(make([]byte, 1))
	require.Error(t, err)
}

func TestWaitEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, wait(ctx, time.Hour), context.Canceled)
	require.ErrorIs(t, wait(ctx, 0), context.Canceled)
	require.NoError(t, wait(t.Context(), time.Nanosecond))
}

func TestProfileString(t *testing.T) {
	require.Equal(t, "10ms RTT, 100 MB/s", Profile{10 * time.Millisecond, 100_000_000}.String())
	require.Equal(t, "1ms RTT, unlimited", Profile{RTT: time.Millisecond}.String())
}
