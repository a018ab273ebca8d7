package remote

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/containerd/stargz-snapshotter/fs/source"
)

// repo is one repository and the hosts that serve it. Host lists are never
// frozen: certs.d and credentials change under a daemon that runs for months.
type repo struct {
	name    reference.Spec
	path    string // repository without the host
	resolve source.RegistryHosts
	// auth lets one request at a time use the authorizers: containerd's reads the
	// expiry of a token that another goroutine is just fetching without a lock.
	auth chan struct{}

	mu    sync.Mutex
	hosts []docker.RegistryHost
	gen   uint64
	at    time.Time
}

// hostsTTL is how long a host list is used before certs.d is read again.
const hostsTTL = 10 * time.Minute

func newRepo(s source.Source) *repo {
	return &repo{
		name:    s.Name,
		path:    strings.TrimPrefix(s.Name.Locator, s.Name.Hostname()+"/"),
		resolve: s.Hosts,
		auth:    make(chan struct{}, 1),
	}
}

// list returns the hosts that may be pulled from and the list's generation.
func (r *repo) list() ([]docker.RegistryHost, uint64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.hosts != nil && time.Since(r.at) < hostsTTL {
		return r.hosts, r.gen, nil
	}
	if err := r.reload(); err != nil && r.hosts == nil {
		return nil, 0, err
	}
	return r.hosts, r.gen, nil
}

// refresh makes a new host list, with new authorizers, unless somebody else
// did since generation gen. An authorizer keeps a failed token fetch for
// ever, and one whose challenge carries no error keeps an expired token, so a
// new one is the only way out of either.
func (r *repo) refresh(gen uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gen != gen {
		return nil
	}
	return r.reload()
}

// reload is called with mu held. On error the old list stays.
func (r *repo) reload() error {
	all, err := r.resolve(r.name)
	if err != nil {
		return err
	}
	hosts := make([]docker.RegistryHost, 0, len(all))
	for _, h := range all {
		if h.Capabilities.Has(docker.HostCapabilityPull) && h.Client != nil {
			hosts = append(hosts, h)
		}
	}
	if len(hosts) == 0 {
		return fmt.Errorf("no host of %s may be pulled from; check its hosts.toml", r.name.Hostname())
	}
	r.hosts, r.at = hosts, time.Now()
	r.gen++
	return nil
}

// host returns the host with the given key from the current list.
func (r *repo) host(key string) (docker.RegistryHost, uint64, error) {
	hosts, gen, err := r.list()
	if err != nil {
		return docker.RegistryHost{}, 0, err
	}
	for _, h := range hosts {
		if hostKey(h) == key {
			return h, gen, nil
		}
	}
	return docker.RegistryHost{}, 0, fmt.Errorf("%w: host %s left the registry configuration", ErrUnavailable, key)
}

// hostKey names a host across refreshes.
func hostKey(h docker.RegistryHost) string { return h.Scheme + "://" + h.Host + h.Path }

// url builds the URL of something in the repository at h, for example
// "blobs/sha256:…". A mirror is told which registry it stands in for, as
// containerd does.
func (r *repo) url(h docker.RegistryHost, rest string) *url.URL {
	u := &url.URL{Scheme: h.Scheme, Host: h.Host, Path: strings.TrimSuffix(h.Path, "/") + "/" + r.path + "/" + rest}
	ref := r.name.Hostname()
	if ref != h.Host && (ref != "docker.io" || h.Host != "registry-1.docker.io") {
		u.RawQuery = url.Values{"ns": {ref}}.Encode()
	}
	return u
}

// authorize returns the Authorization header for a request, "" for none. It
// may fetch a token; others that need one wait for that.
func (r *repo) authorize(ctx context.Context, h docker.RegistryHost, method string, u *url.URL) (string, error) {
	if h.Authorizer == nil {
		return "", nil
	}
	select {
	case r.auth <- struct{}{}:
		defer func() { <-r.auth }()
	case <-ctx.Done():
		return "", scrub(ctx, method, u, ctx.Err())
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return "", err
	}
	if err := h.Authorizer.Authorize(ctx, req); err != nil {
		return "", &authError{scrub(ctx, method, u, err)}
	}
	return req.Header.Get("Authorization"), nil
}

// challenge hands a 401 to the authorizer.
func (r *repo) challenge(ctx context.Context, h docker.RegistryHost, resp *http.Response) error {
	select {
	case r.auth <- struct{}{}:
		defer func() { <-r.auth }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return h.Authorizer.AddResponses(ctx, []*http.Response{resp})
}

// authError is a failure to get a token, before the request was made.
type authError struct{ err error }

func (e *authError) Error() string { return "getting a token: " + e.err.Error() }

func (e *authError) Unwrap() error { return e.err }
