package rootless

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lazyerofs/lazyerofs/fs"
	"github.com/lazyerofs/lazyerofs/fs/driver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakes stands in for layers and driver, to fail as told. Real ones are in
// tests/cli.
type fakes struct {
	mu      sync.Mutex
	open    int
	hold    error
	mount   error
	mounted []*fakeMount
	adopted int
}

func (f *fakes) Hold(context.Context, map[string]string, bool) (driver.Layer, func(), error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hold != nil {
		return nil, nil, f.hold
	}
	f.open++
	return nil, sync.OnceFunc(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.open--
	}), nil
}

func (f *fakes) MountImage(_ context.Context, target string, layers []driver.Layer) (driver.Mount, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mount != nil {
		return nil, f.mount
	}
	m := &fakeMount{target: target, layers: len(layers), done: make(chan struct{})}
	f.mounted = append(f.mounted, m)
	return m, nil
}

func (f *fakes) AdoptImage(ctx context.Context, target string, layers []driver.Layer) (driver.Mount, error) {
	f.adopted++
	return f.MountImage(ctx, target, layers)
}

func (f *fakes) held() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.open
}

type fakeMount struct {
	target string
	layers int
	done   chan struct{}
	left   atomic.Int32 // calls of Done until it is
}

func (m *fakeMount) Target() string              { return m.target }
func (m *fakeMount) Close(context.Context) error { return nil }
func (m *fakeMount) Done() <-chan struct{} {
	if m.left.Add(-1) == 0 {
		close(m.done)
	}
	return m.done
}
func (m *fakeMount) Release() error { return nil }

func mountOf(target string) Mount {
	return Mount{Target: target, Image: "example.com/app:lazy", Layers: []map[string]string{{"a": "1"}, {"a": "2"}}}
}

// served returns a client of images over fakes.
func served(t *testing.T, f *fakes) (Client, *Images) {
	dir := t.TempDir()
	images, err := New(t.Context(), f, f, filepath.Join(dir, "mounts"))
	require.NoError(t, err)
	address := filepath.Join(dir, "s.sock")
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", address)
	require.NoError(t, err)
	server := httptest.NewUnstartedServer(Handler(images))
	require.NoError(t, server.Listener.Close())
	server.Listener = l
	server.Start()
	t.Cleanup(func() { server.Close(); images.Close() })
	return Client{Address: address}, images
}

func TestMountsAreListedUntilNothingUsesThem(t *testing.T) {
	f := &fakes{}
	c, images := served(t, f)
	all, err := c.List(t.Context())
	require.NoError(t, err)
	require.Empty(t, all)
	for _, target := range []string{"/b", "/a"} {
		require.NoError(t, c.Mount(t.Context(), mountOf(target)))
	}
	require.Equal(t, 2, f.mounted[0].layers)
	all, err = c.List(t.Context())
	require.NoError(t, err)
	require.Equal(t, []Mount{mountOf("/a"), mountOf("/b")}, all)
	require.ErrorContains(t, c.Mount(t.Context(), mountOf("/a")), "mounted at /a already")
	require.Equal(t, 4, f.held())

	close(f.mounted[1].done)            // somebody unmounted /a
	require.Eventually(t, func() bool { // it releases first and forgets then
		recorded, err := load(images.dir)
		return err == nil && f.held() == 2 && reflect.DeepEqual([]Mount{mountOf("/b")}, recorded)
	}, time.Minute, time.Millisecond)

	f.mounted[0].left.Store(1)
	require.NoError(t, c.Unmount(t.Context(), "/b"))
	require.Zero(t, f.held())
	require.ErrorContains(t, c.Unmount(t.Context(), "/b"), "no image is mounted at /b")
}

func TestFailuresSayWhichLayerAndLeaveNothing(t *testing.T) {
	f := &fakes{hold: &fs.MountError{Reason: fs.ReasonFormat, Err: errors.New("a tar")}}
	c, images := served(t, f)
	err := c.Mount(t.Context(), mountOf("/a"))
	var failure *Failure
	require.ErrorAs(t, err, &failure)
	require.Equal(t, fs.ReasonFormat, failure.Reason)
	require.Equal(t, "a tar", failure.Message)

	f.hold, f.mount = nil, errors.New("no /dev/fuse")
	require.ErrorContains(t, c.Mount(t.Context(), mountOf("/a")), "no /dev/fuse")
	require.Zero(t, f.held())
	recorded, err := load(images.dir)
	require.NoError(t, err)
	require.Empty(t, recorded)
	for _, m := range []Mount{{}, mountOf("relative"), mountOf("/not/../clean"), mountOf("/"), {Target: "/a"}} {
		require.ErrorAs(t, c.Mount(t.Context(), m), &failure)
	}
	_, err = Client{Address: filepath.Join(t.TempDir(), "none")}.List(t.Context())
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestAWaitForReadersEndsWithItsCaller(t *testing.T) {
	f := &fakes{}
	c, _ := served(t, f)
	require.NoError(t, c.Mount(t.Context(), mountOf("/a")))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, c.Unmount(ctx, "/a"), context.DeadlineExceeded)
	all, err := c.List(t.Context())
	require.NoError(t, err)
	require.Len(t, all, 1)
}

func TestRestoreTakesOverWhatIsMounted(t *testing.T) {
	dir := t.TempDir()
	// Everybody has /proc mounted; the other is not.
	for _, target := range []string{"/proc", "/lazyerofs/not/mounted"} {
		require.NoError(t, save(dir, mountOf(target)))
	}
	for name, content := range map[string]string{"broken.json": "{", "other.json": `{"target":"/x","layers":[{}]}`, "half.json.new": "{}"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
	f := &fakes{}
	images, err := New(t.Context(), f, f, dir)
	require.NoError(t, err)
	require.NoError(t, images.Restore(t.Context()))
	all, err := images.List(t.Context())
	require.NoError(t, err)
	require.Equal(t, []Mount{mountOf("/proc")}, all)
	require.Equal(t, 1, f.adopted)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	images.Close()

	// A successor that is told to stop leaves the record to its own.
	f = &fakes{hold: context.Canceled}
	if images, err = New(t.Context(), f, f, dir); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, images.Restore(ctx))
	recorded, err := load(dir)
	require.NoError(t, err)
	require.Len(t, recorded, 1)
	images.Close()
}

// FuzzHandler asks anything. Whatever comes, the answer is JSON and nothing is
// mounted that could not be unmounted.
func FuzzHandler(f *testing.F) {
	f.Add("POST", "/v1/mounts", []byte(`{"target":"/a","image":"x","layers":[{"a":"b"}]}`))
	f.Add("POST", "/v1/mounts", []byte(`{"target":"/a/../b","layers":[null]}`))
	f.Add("DELETE", "/v1/mounts?target=%2Fa", []byte(nil))
	f.Add("GET", "/v1/mounts", []byte("x"))
	f.Fuzz(func(t *testing.T, method, target string, body []byte) {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://x", bytes.NewReader(body))
		if err != nil {
			return
		}
		if u, err := req.URL.Parse(target); err == nil {
			req.URL = u
		}
		fake := &fakes{}
		images, err := New(t.Context(), fake, fake, t.TempDir())
		require.NoError(t, err)
		defer images.Close()
		w := httptest.NewRecorder()
		Handler(images).ServeHTTP(w, req)
		if fake.held() > 0 && w.Code != http.StatusOK {
			t.Fatalf("answered %d with %d layers open", w.Code, fake.held())
		}
		for _, m := range fake.mounted {
			if !filepath.IsAbs(m.target) || filepath.Clean(m.target) != m.target {
				t.Fatal(fmt.Sprint("mounted at ", m.target))
			}
		}
	})
}
