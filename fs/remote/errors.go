package remote

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
)

// Classes of failure. Callers branch on these with errors.Is; an error is at
// most one of ErrUnavailable and ErrGone.
var (
	// ErrUnavailable marks a failure that a later attempt may not meet: a host
	// that is down, slow, overloaded or that sent a malformed answer.
	ErrUnavailable = errors.New("registry unavailable")
	// ErrGone marks a failure that stays until somebody changes the registry or
	// the credentials: not found or not allowed at every host.
	ErrGone = errors.New("not available from any registry host")
	// ErrNotRanged marks a host that answers a range request with the whole
	// blob. It comes with ErrUnavailable, because caches in front of a registry
	// do so now and then; [Retry] asks again only a few times.
	ErrNotRanged = errors.New("registry host ignores range requests")
	// ErrRange marks a read outside of the blob or a malformed list of extents.
	ErrRange = errors.New("range is not inside the blob")
)

// HTTPError is an answer that is not a success. It never holds a secret: the
// URL has no query and no user.
type HTTPError struct {
	// Method is the request's method.
	Method string
	// URL is the redacted URL that answered.
	URL string
	// Status is the HTTP status code.
	Status int
	// RetryAfter is how long the host asks us to wait; 0 when it did not say.
	RetryAfter time.Duration
}

// Error names the request and its status.
func (e *HTTPError) Error() string {
	return fmt.Sprintf("%s %s: %d %s", e.Method, e.URL, e.Status, http.StatusText(e.Status))
}

// Temporary reports whether the same request may succeed later.
func (e *HTTPError) Temporary() bool {
	switch e.Status {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return true
	case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported:
		return false
	}
	return e.Status >= 500
}

// Is ties the status to ErrUnavailable or ErrGone.
func (e *HTTPError) Is(target error) bool {
	switch target {
	case ErrUnavailable:
		return e.Temporary()
	case ErrGone:
		return !e.Temporary()
	}
	return false
}

// ProtocolError is an answer with a success status that breaks the contract of
// a ranged read: a wrong Content-Range, a wrong length.
type ProtocolError struct {
	// URL is the redacted URL that answered.
	URL string
	// Reason says what is wrong, in words.
	Reason string
	// notRanged is set when a whole body came where a range was asked for.
	notRanged bool
}

// Error names the URL and the broken rule.
func (e *ProtocolError) Error() string {
	return fmt.Sprintf("GET %s: %s", e.URL, e.Reason)
}

// Is makes it an ErrUnavailable, and an ErrNotRanged where that is the reason.
func (e *ProtocolError) Is(target error) bool {
	return target == ErrUnavailable || (e.notRanged && target == ErrNotRanged)
}

// ReadError says that no host gave the bytes. Unwrap leads to the failure that
// decides what to do: a temporary one if there was any, otherwise the first.
type ReadError struct {
	// What names the thing read, for example "blob sha256:… at 4096+100".
	What string
	// Errs holds one error per host that was tried, in order.
	Errs []error
}

// Error is one sentence with the deciding failure and the number of hosts.
func (e *ReadError) Error() string {
	if len(e.Errs) == 1 {
		return fmt.Sprintf("reading %s: %v", e.What, e.Errs[0])
	}
	return fmt.Sprintf("reading %s: none of %d hosts gave it, for example: %v", e.What, len(e.Errs), e.Unwrap())
}

// Unwrap returns the deciding failure.
func (e *ReadError) Unwrap() error {
	for _, err := range e.Errs {
		if errors.Is(err, ErrUnavailable) {
			return err
		}
	}
	if len(e.Errs) == 0 {
		return ErrGone
	}
	return e.Errs[0]
}

// transportError is a failure below HTTP.
type transportError struct {
	method, url string
	err         error
}

func (e *transportError) Error() string { return fmt.Sprintf("%s %s: %v", e.method, e.url, e.err) }

func (e *transportError) Unwrap() error { return e.err }

// Is makes everything below HTTP temporary but a certificate that does not
// verify: no retry mends that.
func (e *transportError) Is(target error) bool {
	var cert *tls.CertificateVerificationError
	return target == ErrUnavailable && !errors.As(e.err, &cert)
}

// redact returns u without user and query: signed URLs carry credentials there.
func redact(u *url.URL) string {
	if u == nil {
		return "(no URL)"
	}
	c := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}
	if u.RawQuery != "" {
		c.RawQuery = "..."
	}
	return c.String()
}

// scrub turns an error of net/http or of the docker authorizer into one of
// ours: no URL with a query, no text of a server's body.
func scrub(ctx context.Context, method string, u *url.URL, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	var status remoteerrors.ErrUnexpectedStatus
	if errors.As(err, &status) {
		where := redact(u)
		if p, perr := url.Parse(status.RequestURL); perr == nil {
			where = redact(p)
		}
		return &HTTPError{Method: status.RequestMethod, URL: where, Status: status.StatusCode}
	}
	var ue *url.Error
	for errors.As(err, &ue) {
		err = ue.Err
	}
	return &transportError{method: method, url: redact(u), err: err}
}
