package remote_test

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/remote"
	"github.com/lazyerofs/lazyerofs/fs/remote/remotetest"
)

func collect(to *[]byte) func(int, io.Reader) error {
	return func(_ int, r io.Reader) (err error) {
		*to, err = io.ReadAll(r)
		return err
	}
}

func TestTokenIsFetchedOnceAndRefreshed(t *testing.T) {
	for _, silent := range []bool{false, true} {
		tokens := &remotetest.Tokens{User: "u", Password: "p", Silent: silent}
		g := newRig(t, tokens.Wrap)
		g.creds = func(string) (string, string, error) { return "u", "p", nil }
		b := g.bare(t)
		for i := range int64(3) {
			require.NoError(t, g.read(t, b, i*1000, 1000))
		}
		require.Equal(t, 1, tokens.Issued())
		tokens.Expire()
		require.NoError(t, g.read(t, b, 5000, 1000), "silent %v", silent)
		require.Equal(t, 2, tokens.Issued())
	}
}

func TestTokenUnderConcurrentReaders(t *testing.T) {
	tokens := &remotetest.Tokens{}
	g := newRig(t, tokens.Wrap)
	b := g.bare(t)
	for range 3 {
		var wg sync.WaitGroup
		errs := make([]error, 8)
		for i := range errs {
			wg.Go(func() { _, errs[i] = b.ReadAt(t.Context(), make([]byte, 100), int64(i)*1000) })
		}
		wg.Wait()
		for _, err := range errs {
			require.NoError(t, err)
		}
		tokens.Expire()
	}
}

func TestRotatedCredentialsCount(t *testing.T) {
	tokens := &remotetest.Tokens{User: "u", Password: "new"}
	g := newRig(t, tokens.Wrap)
	pass := "old"
	g.creds = func(string) (string, string, error) { return "u", pass, nil }
	b := g.bare(t)
	err := g.read(t, b, 0, 10)
	require.ErrorIs(t, err, remote.ErrGone)
	require.NotContains(t, err.Error(), "old", "no secret in messages")
	pass = "new"
	require.NoError(t, g.read(t, b, 0, 10))
}

// TestFailedTokenFetchIsNotKept is about containerd's authorizer, which keeps
// the result of a token fetch, errors included.
func TestFailedTokenFetchIsNotKept(t *testing.T) {
	tokens := &remotetest.Tokens{}
	var faults remotetest.Faults
	g := newRig(t, func(h http.Handler) http.Handler { return faults.Wrap(tokens.Wrap(h)) })
	faults.Add("", "/token", 2, remotetest.Status(http.StatusServiceUnavailable))
	require.NoError(t, g.read(t, remote.Retry(g.bare(t), quick), 0, 10))
}

func TestRedirectIsRememberedUntilItExpires(t *testing.T) {
	tokens := &remotetest.Tokens{}
	g := newRig(t, tokens.Wrap)
	var log remotetest.Log
	storage := &remotetest.Storage{Registry: &g.registry}
	server := serve(t, log.Wrap(storage))
	storage.Base = server.URL
	g.registry.RedirectTo(storage)

	b := g.bare(t)
	for i := range int64(4) {
		require.NoError(t, g.read(t, b, i*1000, 1000))
	}
	require.Len(t, g.blobGets(), 2, "the challenge and the redirect; then storage is asked directly")
	require.Len(t, log.Matching(http.MethodGet, "/data/"), 4)
	for _, r := range log.Requests() {
		require.Empty(t, r.Auth, "authorization must not leave the registry")
	}

	storage.Expire()
	require.NoError(t, g.read(t, b, 9000, 1000))
	require.Len(t, g.blobGets(), 3)

	// A storage that refuses a fresh URL is an error without the signature in it.
	storage.Base = server.URL + "/elsewhere"
	storage.Expire()
	err := g.read(t, b, 9000, 1000)
	require.ErrorIs(t, err, remote.ErrGone)
	require.NotContains(t, err.Error(), "secret")
}

func TestTransportErrorsAreRedacted(t *testing.T) {
	g := newRig(t, nil)
	storage := &remotetest.Storage{Registry: &g.registry, Base: "http://127.0.0.1:1"}
	g.registry.RedirectTo(storage)
	err := g.read(t, g.bare(t), 0, 10)
	require.ErrorIs(t, err, remote.ErrUnavailable)
	require.NotContains(t, err.Error(), "secret")
	require.Contains(t, err.Error(), "127.0.0.1:1")
}

func TestDockerCredentials(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	user, secret, err := remote.DockerCredentials("reg.example")
	require.NoError(t, err, "no file at all is anonymous")
	require.Empty(t, user+secret)

	helpers := t.TempDir()
	helper := "#!/bin/sh\nread host\necho '{\"ServerURL\":\"'$host'\",\"Username\":\"helped\",\"Secret\":\"by-'$host'\"}'\n"
	require.NoError(t, os.WriteFile(filepath.Join(helpers, "docker-credential-test"), []byte(helper), 0o700))
	t.Setenv("PATH", helpers+":"+os.Getenv("PATH"))
	cfg := `{"auths":{"reg.example":{"auth":"dTpw"},"https://index.docker.io/v1/":{"auth":"aHViOnB3"},
		"id.example":{"auth":"PHRva2VuPjo=","identitytoken":"refresh-me"}},"credHelpers":{"helped.example":"test"}}`
	require.NoError(t, os.WriteFile(filepath.Join(dir, "config.json"), []byte(cfg), 0o600))
	for host, want := range map[string][2]string{
		"reg.example": {"u", "p"}, "registry-1.docker.io": {"hub", "pw"}, "id.example": {"", "refresh-me"},
		"helped.example": {"helped", "by-helped.example"}, "other.example": {"", ""},
	} {
		user, secret, err := remote.DockerCredentials(host)
		require.NoError(t, err, host)
		require.Equal(t, want, [2]string{user, secret}, host)
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "config.json"), []byte("{"), 0o600))
	_, _, err = remote.DockerCredentials("reg.example")
	require.ErrorContains(t, err, dir)
}
