package testenv

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem" // the driver that the configuration names
	"github.com/sirupsen/logrus"
)

// Request is one line of a registry's log.
type Request struct {
	Start  time.Time
	End    time.Time
	Method string
	Path   string
	Range  string // the header as it came, "" when absent
	Status int
	Bytes  int64 // of the body that was written
}

// Blob returns the digest of the blob that a request is for, or "".
func (r Request) Blob() string {
	_, digest, found := strings.Cut(r.Path, "/blobs/")
	if !found || strings.Contains(digest, "uploads") {
		return ""
	}
	return digest
}

// Registry is the distribution project's registry in this process, on loopback,
// with its data in a directory and every request in a log.
type Registry struct {
	server *http.Server
	app    *handlers.App
	addr   string
	served chan error
	stop   context.CancelFunc
	once   sync.Once
	err    error

	handlers sync.WaitGroup // http.Server.Close does not wait for them

	mu       sync.Mutex
	closed   bool // no handler starts any more
	log      []Request
	resets   int // a request that began before the last is no line of the log
	inFlight int
	changed  time.Time // when a request last began or ended
	withhold func(*http.Request) int
}

// StartRegistry serves the images below dir, which it creates.
func StartRegistry(dir string) (*Registry, error) {
	secret := make([]byte, 16)
	if _, err := rand.Read(secret); err != nil {
		return nil, fmt.Errorf("making the registry's secret: %w", err)
	}
	config := &configuration.Configuration{Storage: configuration.Storage{
		"filesystem": {"rootdirectory": dir},
		"delete":     {"enabled": true},
		// Its timer could not be stopped, and nothing here lives for a week.
		"maintenance": {"uploadpurging": map[any]any{"enabled": false, "age": "168h", "interval": "24h", "dryrun": false}},
	}}
	config.Log.Level = "fatal" // a HEAD of what is not there yet is logged as an error
	config.Log.AccessLog.Disabled = true
	config.HTTP.Secret = hex.EncodeToString(secret)
	logrus.SetLevel(logrus.FatalLevel) // start-up lines go through the global logger

	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listening for the registry: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	r := &Registry{
		app:    handlers.NewApp(ctx, config),
		addr:   listener.Addr().String(),
		served: make(chan error, 1),
		stop:   stop,
	}
	r.server = &http.Server{Handler: r, ReadHeaderTimeout: time.Minute}
	go func() { r.served <- r.server.Serve(listener) }()
	return r, nil
}

// Addr is host:port, on loopback; the registry speaks plain HTTP there.
func (r *Registry) Addr() string { return r.addr }

// Close ends all requests and waits for their handlers: after it nothing writes
// to the registry's directory any more.
func (r *Registry) Close() error {
	r.once.Do(func() {
		r.err = r.server.Close()
		if err := <-r.served; !errors.Is(err, http.ErrServerClosed) {
			r.err = errors.Join(r.err, err)
		}
		r.mu.Lock()
		r.closed = true
		r.mu.Unlock()
		r.handlers.Wait()
		r.err = errors.Join(r.err, r.app.Shutdown())
		r.stop()
	})
	return r.err
}

// Refuse makes the registry answer each request for which status returns other
// than 0 with that status, as a registry in trouble would; nil ends it.
func (r *Registry) Refuse(status func(*http.Request) int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.withhold = status
}

// Log returns the requests that have begun and ended since the last Reset, in the
// order of their ends. One may end a moment after its client has the whole answer.
func (r *Registry) Log() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Request(nil), r.log...)
}

// Reset empties the log.
func (r *Registry) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log = nil
	r.resets++
}

// Settle returns when no request has begun, ended or been under way for as long as
// quiet.
func (r *Registry) Settle(ctx context.Context, quiet time.Duration) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); !r.settled(began, quiet); {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting until the registry has nothing to do: %w", ctx.Err())
		}
	}
	return nil
}

func (r *Registry) settled(began time.Time, quiet time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.changed.After(began) {
		began = r.changed
	}
	return r.inFlight == 0 && time.Since(began) >= quiet
}

// ServeHTTP answers and records one request.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	line := Request{Start: time.Now(), Method: req.Method, Path: req.URL.Path, Range: req.Header.Get("Range")}
	rec := &recorder{ResponseWriter: w}
	r.mu.Lock()
	if r.closed { // its connection is gone too
		r.mu.Unlock()
		return
	}
	r.handlers.Add(1)
	r.inFlight++
	r.changed = line.Start
	withhold, resets := r.withhold, r.resets
	r.mu.Unlock()
	defer r.handlers.Done()
	// A client that leaves makes the handler panic with ErrAbortHandler; such a
	// request took place too.
	defer func() {
		line.End, line.Status, line.Bytes = time.Now(), rec.status, rec.bytes
		r.mu.Lock()
		defer r.mu.Unlock()
		r.inFlight--
		r.changed = line.End
		if resets == r.resets {
			r.log = append(r.log, line)
		}
	}()
	if withhold != nil {
		if status := withhold(req); status != 0 {
			rec.WriteHeader(status)
			return
		}
	}
	r.app.ServeHTTP(rec, req)
}

// recorder notes what a handler answers. It has no ReadFrom on purpose: bytes
// that sendfile moved could not be counted as they go.
type recorder struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 { // the registry answers again when a client breaks off an upload
		r.status = status
		r.ResponseWriter.WriteHeader(status)
	}
}

func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	n, err := r.ResponseWriter.Write(p)
	r.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach what it wraps.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
