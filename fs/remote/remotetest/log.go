package remotetest

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Request is one line of a Log.
type Request struct {
	// Start is when the request came in; Duration until its handler returned.
	Start    time.Time
	Duration time.Duration
	// Method, Path and Query are those of the request.
	Method, Path, Query string
	// Range is the Range header, "" when absent.
	Range string
	// Auth is the scheme of the Authorization header: "", "Bearer", "Basic".
	Auth string
	// Status is the answer's status; 0 when the handler aborted before one.
	Status int
	// Bytes is how much body was written.
	Bytes int64
}

// Log records the requests that pass through it to a handler. A request is in
// the log from its start; status, bytes and duration are filled in as it goes
// on, and a client may have its answer a moment before they are.
type Log struct {
	mu     sync.Mutex
	reqs   []*Request
	active int
	idle   chan struct{} // closed when active falls to 0
}

// Wrap returns h with its requests recorded.
func (l *Log) Wrap(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		scheme, _, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		req := &Request{
			Start: time.Now(), Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery,
			Range: r.Header.Get("Range"), Auth: scheme,
		}
		l.mu.Lock()
		l.reqs = append(l.reqs, req)
		if l.active == 0 {
			l.idle = make(chan struct{})
		}
		l.active++
		l.mu.Unlock()
		defer func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			req.Duration = time.Since(req.Start)
			if l.active--; l.active == 0 {
				close(l.idle)
			}
		}()
		h.ServeHTTP(&recorder{ResponseWriter: w, log: l, req: req}, r)
	})
}

// Idle waits until no request is under way: then every line is final.
func (l *Log) Idle(ctx context.Context) error {
	l.mu.Lock()
	idle, busy := l.idle, l.active > 0
	l.mu.Unlock()
	if !busy {
		return nil
	}
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Requests returns a copy of the log so far.
func (l *Log) Requests() []Request {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]Request, len(l.reqs))
	for i, r := range l.reqs {
		out[i] = *r
	}
	return out
}

// Matching returns the logged requests with the method whose path contains part.
func (l *Log) Matching(method, part string) []Request {
	var out []Request
	for _, r := range l.Requests() {
		if r.Method == method && strings.Contains(r.Path, part) {
			out = append(out, r)
		}
	}
	return out
}

// Reset empties the log.
func (l *Log) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reqs = nil
}

// recorder notes what a handler writes.
type recorder struct {
	http.ResponseWriter
	log *Log
	req *Request
}

func (r *recorder) note(status int, n int64) {
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	if r.req.Status == 0 {
		r.req.Status = status
	}
	r.req.Bytes += n
}

func (r *recorder) WriteHeader(status int) {
	r.note(status, 0)
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	r.note(http.StatusOK, 0)
	n, err := r.ResponseWriter.Write(p)
	r.note(http.StatusOK, int64(n))
	return n, err
}

// ReadFrom keeps the fast path of the writer below.
func (r *recorder) ReadFrom(src io.Reader) (int64, error) {
	r.note(http.StatusOK, 0)
	n, err := io.Copy(r.ResponseWriter, src)
	r.note(http.StatusOK, n)
	return n, err
}

// Unwrap serves http.ResponseController.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
