package remotetest

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Fault answers a request in place of next, or changes what next answers.
type Fault func(w http.ResponseWriter, r *http.Request, next http.Handler)

// Faults puts faults in front of a handler.
type Faults struct {
	mu    sync.Mutex
	rules []*rule
}

type rule struct {
	method, part string
	left         int
	fault        Fault
}

// Always as a count keeps a fault until Clear.
const Always = -1

// Add makes the next times requests whose method is method ("" for any) and
// whose path contains part meet fault. Rules are tried in the order of Add.
func (f *Faults) Add(method, part string, times int, fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = append(f.rules, &rule{method, part, times, fault})
}

// Clear removes all faults.
func (f *Faults) Clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = nil
}

// Wrap returns h behind the faults.
func (f *Faults) Wrap(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if fault := f.match(r); fault != nil {
			fault(w, r, h)
			return
		}
		h.ServeHTTP(w, r)
	})
}

func (f *Faults) match(r *http.Request) Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, x := range f.rules {
		if x.left != 0 && (x.method == "" || x.method == r.Method) && strings.Contains(r.URL.Path, x.part) {
			if x.left > 0 {
				x.left--
			}
			return x.fault
		}
	}
	return nil
}

// Status answers with a status and header fields in pairs.
func Status(code int, header ...string) Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		http.Error(w, `{"errors":[{"code":"FAULT"}]}`, code)
	}
}

// IgnoreRange answers a range request with 200 and the whole blob.
func IgnoreRange(w http.ResponseWriter, r *http.Request, next http.Handler) {
	r.Header.Del("Range")
	next.ServeHTTP(w, r)
}

// Hang answers nothing until the client goes away.
func Hang(_ http.ResponseWriter, r *http.Request, _ http.Handler) { <-r.Context().Done() }

// Abort closes the connection without an answer.
func Abort(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) }

// edit runs next, lets change alter its answer and sends the result.
func edit(w http.ResponseWriter, r *http.Request, next http.Handler, change func(rec *httptest.ResponseRecorder) []byte) {
	rec := httptest.NewRecorder()
	next.ServeHTTP(rec, r)
	body := change(rec)
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
	w.WriteHeader(rec.Code)
	_, _ = w.Write(body)
	_ = http.NewResponseController(w).Flush()
}

// Truncate promises the whole body, sends n bytes and cuts the connection.
func Truncate(n int) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		edit(w, r, next, func(rec *httptest.ResponseRecorder) []byte {
			rec.Header().Set("Content-Length", strconv.Itoa(rec.Body.Len()))
			return rec.Body.Bytes()[:min(n, rec.Body.Len())]
		})
		panic(http.ErrAbortHandler)
	}
}

// Stall sends n bytes of the body and then nothing until the client goes away.
func Stall(n int) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		edit(w, r, next, func(rec *httptest.ResponseRecorder) []byte {
			rec.Header().Set("Content-Length", strconv.Itoa(rec.Body.Len()))
			return rec.Body.Bytes()[:min(n, rec.Body.Len())]
		})
		<-r.Context().Done()
	}
}

// Flip changes one byte of the body and nothing else.
func Flip(at int) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		edit(w, r, next, func(rec *httptest.ResponseRecorder) []byte {
			b := rec.Body.Bytes()
			if at < len(b) {
				b[at] ^= 0x40
			}
			return b
		})
	}
}

// ContentRange sends the right bytes under another Content-Range.
func ContentRange(v string) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		edit(w, r, next, func(rec *httptest.ResponseRecorder) []byte {
			rec.Header().Set("Content-Range", v)
			return rec.Body.Bytes()
		})
	}
}

// Short answers a range request with fewer bytes than asked, correctly
// described: RFC 9110 allows it.
func Short(n int64) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		var a, b int64
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &a, &b); err == nil {
			r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", a, min(b, a+n-1)))
		}
		next.ServeHTTP(w, r)
	}
}

// Slow sends the body in pieces of n bytes with a pause between them.
func Slow(n int, pause time.Duration) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r)
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.Header().Set("Content-Length", strconv.Itoa(rec.Body.Len()))
		w.WriteHeader(rec.Code)
		t := time.NewTicker(pause)
		defer t.Stop()
		for b := rec.Body.Bytes(); len(b) > 0; b = b[min(n, len(b)):] {
			_, _ = w.Write(b[:min(n, len(b))])
			_ = http.NewResponseController(w).Flush()
			select {
			case <-t.C:
			case <-r.Context().Done():
				return
			}
		}
	}
}
