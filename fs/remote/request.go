package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// maxRedirects bounds the hops from a registry to its storage.
const maxRedirects = 5

// endpoint is one thing at one host: what a request is made to.
type endpoint struct {
	res  *Resolver
	repo *repo
	key  string // hostKey
	rest string // path under the repository
}

// id names the endpoint in the process-wide caches.
func (e *endpoint) id() string { return e.key + " " + e.repo.path + " " + e.rest }

// do makes one request and returns an answer with a 2xx status, whose body
// the caller closes. It uses the address that an earlier redirect led to as
// long as that works; otherwise it goes through the registry, which also gives
// a new signed URL when the old one expired.
func (e *endpoint) do(ctx context.Context, method string, hdr http.Header) (*http.Response, error) {
	ctx, err := docker.ContextWithRepositoryScope(ctx, e.repo.name, false)
	if err != nil {
		return nil, err
	}
	if method == http.MethodGet {
		if resp := e.viaCached(ctx, hdr); resp != nil {
			return resp, nil
		}
		if ctx.Err() != nil {
			return nil, scrub(ctx, method, nil, ctx.Err())
		}
	}
	return e.viaRegistry(ctx, method, hdr)
}

// viaCached tries the remembered address; nil means that the registry must be asked.
func (e *endpoint) viaCached(ctx context.Context, hdr http.Header) *http.Response {
	addr, ok := e.res.redirects.Get(e.id())
	if !ok {
		return nil
	}
	h, _, err := e.repo.host(e.key)
	if err == nil {
		var u *url.URL
		if u, err = url.Parse(addr); err == nil {
			var resp *http.Response
			resp, _, err = e.follow(ctx, h, http.MethodGet, u, hdr, "")
			if err == nil && resp.StatusCode/100 == 2 {
				return resp
			}
			if err == nil {
				discard(resp)
			}
		}
	}
	e.res.redirects.Remove(e.id())
	return nil
}

// viaRegistry asks the registry, with at most one new authorizer: a first 401
// is the challenge, a second or a 403 means that token or credentials expired.
func (e *endpoint) viaRegistry(ctx context.Context, method string, hdr http.Header) (*http.Response, error) {
	challenged, refreshed := false, false
	for {
		h, gen, err := e.repo.host(e.key)
		if err != nil {
			return nil, err
		}
		u := e.repo.url(h, e.rest)
		resp, crossed, err := e.send(ctx, h, method, u, hdr)
		if err == nil && resp.StatusCode/100 == 2 {
			return resp, nil
		}
		var denied bool
		var auth *authError
		switch {
		case errors.As(err, &auth):
			denied = true
		case err != nil:
			return nil, err
		default:
			err = httpError(resp)
			discard(resp)
			status := resp.StatusCode
			denied = !crossed && (status == http.StatusUnauthorized || status == http.StatusForbidden)
			if denied && status == http.StatusUnauthorized && !challenged && h.Authorizer != nil {
				challenged = true
				aerr := e.repo.challenge(ctx, h, resp)
				if aerr == nil {
					continue
				}
				err = fmt.Errorf("%w (%.200s)", err, aerr.Error())
			}
		}
		if !denied || refreshed || ctx.Err() != nil {
			return nil, err
		}
		challenged, refreshed = false, true
		if rerr := e.repo.refresh(gen); rerr != nil {
			return nil, rerr
		}
	}
}

// send authorises and makes the request to the registry. crossed tells that
// another host gave the answer.
func (e *endpoint) send(ctx context.Context, h docker.RegistryHost, method string, u *url.URL, hdr http.Header) (*http.Response, bool, error) {
	auth, err := e.repo.authorize(ctx, h, method, u)
	if err != nil {
		return nil, false, err
	}
	own := hdr.Clone()
	for k, v := range h.Header {
		own[k] = append(own[k], v...)
	}
	return e.follow(ctx, h, method, u, own, auth)
}

// follow makes the request and follows redirects itself: the client would not
// tell where it ended, and authorization must not leave the registry's origin.
// Headers from hosts.toml go no further than the registry either.
func (e *endpoint) follow(ctx context.Context, h docker.RegistryHost, method string, u *url.URL, hdr http.Header, auth string) (*http.Response, bool, error) {
	client := *h.Client
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	crossed := false
	for hop := 0; ; hop++ {
		req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
		if err != nil {
			return nil, crossed, scrub(ctx, method, u, err)
		}
		req.Header = hdr.Clone()
		if crossed {
			req.Header = keep(hdr, "Range", "Accept", "Accept-Encoding", "User-Agent")
		} else if auth != "" {
			req.Header.Set("Authorization", auth)
		}
		resp, err := client.Do(req)
		if err != nil {
			return nil, crossed, scrub(ctx, method, u, err)
		}
		if !isRedirect(resp.StatusCode) {
			if crossed && method == http.MethodGet && resp.StatusCode/100 == 2 {
				e.res.redirects.Add(e.id(), u.String())
			}
			return resp, crossed, nil
		}
		discard(resp)
		next, err := resp.Location()
		if err != nil || hop == maxRedirects || (next.Scheme != "http" && next.Scheme != "https") {
			return nil, crossed, &ProtocolError{URL: redact(u), Reason: "redirects in a circle or to no usable address"}
		}
		crossed = crossed || next.Host != u.Host || next.Scheme != u.Scheme
		u = next
	}
}

func isRedirect(status int) bool {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
		http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// keep returns the named fields of h.
func keep(h http.Header, names ...string) http.Header {
	out := make(http.Header, len(names))
	for _, n := range names {
		if v, ok := h[n]; ok {
			out[n] = v
		}
	}
	return out
}

// httpError describes an answer without a success status.
func httpError(resp *http.Response) *HTTPError {
	return &HTTPError{
		Method: resp.Request.Method, URL: redact(resp.Request.URL), Status: resp.StatusCode,
		RetryAfter: retryAfter(resp.Header, time.Now()),
	}
}

// discard closes a body that nobody reads, after a little of it, so that the
// connection can be used again after a short error text.
func discard(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 8<<10)
	_ = resp.Body.Close()
}
