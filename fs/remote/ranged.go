package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// skipLimit is how much of a 200 answer may be thrown away to reach the range
// that was asked for. More than that and the host counts as not ranged.
const skipLimit = 256 << 10

// body is the part of one answer that may be handed on: at most left bytes.
type body struct {
	rc   io.ReadCloser
	w    *watch
	left int64
	url  string
}

// Read returns io.EOF at the end of the range or of the answer, whichever
// comes first; the caller knows which it was.
func (b *body) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	n, err := b.rc.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	b.w.moved(n)
	if err != nil && !errors.Is(err, io.EOF) {
		if cause := context.Cause(b.w.ctx); cause != nil {
			err = cause
		}
		err = &transportError{method: http.MethodGet, url: b.url, err: err}
	}
	return n, err
}

// Close ends the request. A body read to its end leaves the connection for
// the next request, any other is cut off.
func (b *body) Close() error {
	err := b.rc.Close()
	b.w.stop()
	return err
}

// getRange asks for [off, end) of a blob whose length is size. The body may
// be shorter than asked, never longer, never from another place.
func (e *endpoint) getRange(ctx context.Context, w *watch, off, end, size int64) (*body, error) {
	hdr := baseHeader()
	hdr.Set("Range", fmt.Sprintf("bytes=%d-%d", off, end-1))
	resp, err := e.do(ctx, http.MethodGet, hdr)
	if err != nil {
		return nil, err
	}
	b := &body{rc: resp.Body, w: w, url: redact(resp.Request.URL), left: end - off}
	if err := b.accept(resp, off, end, size); err != nil {
		_ = resp.Body.Close()
		e.res.redirects.Remove(e.id())
		return nil, err
	}
	w.body()
	return b, nil
}

// accept checks that the answer is the range that was asked for.
func (b *body) accept(resp *http.Response, off, end, size int64) error {
	bad := func(format string, args ...any) error {
		return &ProtocolError{URL: b.url, Reason: fmt.Sprintf(format, args...)}
	}
	if enc := resp.Header.Get("Content-Encoding"); enc != "" && !strings.EqualFold(enc, "identity") {
		return bad("answer is encoded as %.32q", enc)
	}
	switch resp.StatusCode {
	case http.StatusPartialContent:
		cr, err := parseContentRange(resp.Header.Get("Content-Range"))
		if err != nil {
			return bad("%v", err)
		}
		if cr.off != off || cr.end > end {
			return bad("asked for bytes %d-%d, answer holds %d-%d", off, end-1, cr.off, cr.end-1)
		}
		if cr.total >= 0 && cr.total != size {
			return bad("blob has %d bytes there, %d in the manifest", cr.total, size)
		}
		if resp.ContentLength >= 0 && resp.ContentLength != cr.end-cr.off {
			return bad("Content-Length %d contradicts Content-Range", resp.ContentLength)
		}
		b.left = cr.end - off
		return nil
	case http.StatusOK:
		return b.acceptWhole(resp, off, end, size)
	}
	return bad("unexpected status %d", resp.StatusCode)
}

// acceptWhole takes a 200 where the range is near the start, and refuses it
// where the whole blob would have to pass by for each read.
func (b *body) acceptWhole(resp *http.Response, off, end, size int64) error {
	if resp.ContentLength >= 0 && resp.ContentLength != size {
		return &ProtocolError{URL: b.url, Reason: fmt.Sprintf("blob has %d bytes there, %d in the manifest", resp.ContentLength, size)}
	}
	if off > skipLimit {
		return &ProtocolError{URL: b.url, notRanged: true,
			Reason: fmt.Sprintf("range bytes %d-%d was answered with the whole blob; the host must support range requests", off, end-1)}
	}
	b.w.body()
	if n, err := io.CopyN(io.Discard, b.rc, off); err != nil {
		return &ProtocolError{URL: b.url, Reason: fmt.Sprintf("body ends after %d of %d bytes", n, size)}
	}
	return nil
}

func baseHeader() http.Header {
	return http.Header{"Accept-Encoding": {"identity"}, "User-Agent": {"lazyerofs"}}
}
