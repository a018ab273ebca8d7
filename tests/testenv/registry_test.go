package testenv

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func startRegistry(t *testing.T) *Registry {
	t.Helper()
	r, err := StartRegistry(t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	return r
}

func do(t *testing.T, method, url, body string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	require.NoError(t, err)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp, string(got)
}

func TestRegistryServesAndRecordsRanges(t *testing.T) {
	defer verifyNoGoroutines(t, goleak.IgnoreCurrent(), IgnoreRegistry())
	r, err := StartRegistry(t.TempDir())
	require.NoError(t, err)
	base := "http://" + r.Addr() + "/v2/some/name/blobs/"
	const text = "0123456789"
	dgst := digest.FromString(text)
	resp, _ := do(t, http.MethodPost, base+"uploads/", "")
	require.Equal(t, http.StatusAccepted, resp.StatusCode)
	resp, _ = do(t, http.MethodPut, resp.Header.Get("Location")+"&digest="+dgst.String(), text)
	require.Equal(t, http.StatusCreated, resp.StatusCode)

	r.Reset()
	resp, got := do(t, http.MethodGet, base+dgst.String(), "", "Range", "bytes=2-4")
	require.Equal(t, http.StatusPartialContent, resp.StatusCode)
	require.Equal(t, "234", got)
	require.NoError(t, r.Close(), "waits for the request to be logged")

	log := r.Log()
	require.Len(t, log, 1)
	require.Equal(t, "bytes=2-4", log[0].Range)
	require.Equal(t, http.MethodGet, log[0].Method)
	require.Equal(t, http.StatusPartialContent, log[0].Status)
	require.EqualValues(t, 3, log[0].Bytes)
	require.Equal(t, dgst.String(), log[0].Blob())
	require.False(t, log[0].End.Before(log[0].Start))
}

func TestRegistryRefuses(t *testing.T) {
	r := startRegistry(t)
	url := "http://" + r.Addr() + "/v2/"
	r.Refuse(func(req *http.Request) int {
		if req.Header.Get("Range") != "" {
			return http.StatusTooManyRequests
		}
		return 0
	})
	resp, _ := do(t, http.MethodGet, url, "", "Range", "bytes=0-1")
	require.Equal(t, http.StatusTooManyRequests, resp.StatusCode)
	resp, _ = do(t, http.MethodGet, url, "")
	require.Equal(t, http.StatusOK, resp.StatusCode)
	r.Refuse(nil)
	resp, _ = do(t, http.MethodGet, url, "", "Range", "bytes=0-1")
	require.Equal(t, http.StatusOK, resp.StatusCode)
}

// What began before a Reset is no line of the log, though it ends after it, and the
// registry has not settled before it has ended.
func TestRegistryResetWithARequestUnderWay(t *testing.T) {
	r := startRegistry(t)
	entered, leave := make(chan struct{}), make(chan struct{})
	var once sync.Once
	r.Refuse(func(*http.Request) int {
		once.Do(func() { close(entered); <-leave })
		return http.StatusTeapot
	})
	url := "http://" + r.Addr() + "/v2/"
	ended := make(chan error, 1)
	go func() {
		resp, err := http.Post(url, "", nil) //nolint:forbidigo // it ends with the test
		if err == nil {
			err = resp.Body.Close()
		}
		ended <- err
	}()
	<-entered
	r.Reset()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, r.Settle(ctx, 0), context.DeadlineExceeded)
	close(leave)
	require.NoError(t, <-ended)
	http.DefaultClient.CloseIdleConnections() //nolint:forbidigo // of the request above
	require.NoError(t, r.Settle(t.Context(), time.Millisecond))
	require.Empty(t, r.Log())
	do(t, http.MethodGet, url, "")
	require.NoError(t, r.Settle(t.Context(), 0))
	require.Len(t, r.Log(), 1)
}

func TestRequestBlob(t *testing.T) {
	require.Empty(t, Request{Path: "/v2/x/manifests/latest"}.Blob())
	require.Empty(t, Request{Path: "/v2/x/blobs/uploads/1234"}.Blob())
	require.Equal(t, "sha256:ab", Request{Path: "/v2/x/blobs/sha256:ab"}.Blob())
}
