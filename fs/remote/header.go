package remote

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// maxRetryAfter bounds what a host may ask us to wait: a header is not a way
// to switch us off.
const maxRetryAfter = time.Hour

// contentRange is a parsed Content-Range header (RFC 9110, 14.4).
type contentRange struct {
	off, end int64 // half open
	total    int64 // -1 when the server wrote "*"
}

// parseContentRange accepts "bytes a-b/total" and "bytes a-b/*" and nothing
// else; an unsatisfied range ("bytes */n") is not a range.
func parseContentRange(s string) (contentRange, error) {
	bad := func() (contentRange, error) {
		return contentRange{}, fmt.Errorf("malformed Content-Range %.64q", s)
	}
	unit, rest, ok := strings.Cut(s, " ")
	if !ok || !strings.EqualFold(unit, "bytes") {
		return bad()
	}
	span, total, ok := strings.Cut(rest, "/")
	if !ok {
		return bad()
	}
	first, last, ok := strings.Cut(span, "-")
	if !ok {
		return bad()
	}
	a, aok := parseSize(first)
	b, bok := parseSize(last)
	if !aok || !bok || b < a {
		return bad()
	}
	cr := contentRange{off: a, end: b + 1, total: -1}
	if total != "*" {
		t, tok := parseSize(total)
		if !tok || t < cr.end {
			return bad()
		}
		cr.total = t
	}
	return cr, nil
}

// maxSize bounds every size and offset that comes from outside; sums of two
// stay far from overflow. No registry stores a blob of a pebibyte.
const maxSize = int64(1) << 50

// parseSize reads a plain decimal of at most maxSize: no sign, no blanks.
func parseSize(s string) (int64, bool) {
	if s == "" || len(s) > 16 {
		return 0, false
	}
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
	}
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil || v > maxSize {
		return 0, false
	}
	return v, true
}

// retryAfter reads a Retry-After header, seconds or a date; 0 when absent,
// malformed or past.
func retryAfter(h http.Header, now time.Time) time.Duration {
	v := h.Get("Retry-After")
	if n, ok := parseSize(v); ok {
		return min(time.Duration(min(n, int64(maxRetryAfter/time.Second)))*time.Second, maxRetryAfter)
	}
	t, err := http.ParseTime(v)
	if err != nil || t.Before(now) {
		return 0
	}
	return min(t.Sub(now), maxRetryAfter)
}
