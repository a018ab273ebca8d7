package converter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// newResolver returns containerd's resolver, which does authorization,
// mirrors and retries.
func newResolver(hosts docker.RegistryHosts) remotes.Resolver {
	return docker.NewResolver(docker.ResolverOptions{Hosts: keepHosts(hosts)})
}

// keepHosts asks for each host list once. The resolver asks for every blob, and
// a new list has a new authorizer, which would fetch a new token each time.
func keepHosts(hosts docker.RegistryHosts) docker.RegistryHosts {
	var mu sync.Mutex
	kept := make(map[string][]docker.RegistryHost)
	return func(name string) ([]docker.RegistryHost, error) {
		mu.Lock()
		defer mu.Unlock()
		if hs, ok := kept[name]; ok {
			return slices.Clone(hs), nil
		}
		hs, err := hosts(name)
		if err != nil {
			return nil, err
		}
		one := make(chan struct{}, 1)
		for i := range hs {
			if hs[i].Capabilities.Has(docker.HostCapabilityResolve) {
				// Or containerd would not try the API; its lack is found out by asking.
				hs[i].Capabilities |= docker.HostCapabilityReferrers
			}
			hs[i].Client = endingBodies(hs[i].Client)
			if hs[i].Authorizer != nil {
				hs[i].Authorizer = &serialAuthorizer{hs[i].Authorizer, one}
			}
		}
		kept[name] = hs
		return slices.Clone(hs), nil
	}
}

// endingBodies returns a client that closes the body of a request when its context
// ends, as one that is done with it does. A push that gives up before its first byte
// leaves a pipe that nobody knows but the request, which waits to read from it, and
// net/http waits for that.
func endingBodies(c *http.Client) *http.Client {
	ending := &http.Client{}
	if c != nil {
		*ending = *c
	}
	base := ending.Transport
	if base == nil {
		base = http.DefaultTransport
	}
	ending.Transport = roundTripper(func(req *http.Request) (*http.Response, error) {
		if body := req.Body; body != nil {
			context.AfterFunc(req.Context(), func() { _ = body.Close() }) // nobody is left to hear of it
		}
		return base.RoundTrip(req)
	})
	return ending
}

type roundTripper func(*http.Request) (*http.Response, error)

// RoundTrip implements http.RoundTripper.
func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// serialAuthorizer lets one request at a time use an authorizer: containerd's
// reads the expiry of a token that another goroutine is just fetching without
// a lock.
type serialAuthorizer struct {
	docker.Authorizer
	one chan struct{}
}

// Authorize implements docker.Authorizer.
func (s *serialAuthorizer) Authorize(ctx context.Context, req *http.Request) error {
	select {
	case s.one <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-s.one }()
	return s.Authorizer.Authorize(ctx, req)
}

// AddResponses implements docker.Authorizer.
func (s *serialAuthorizer) AddResponses(ctx context.Context, rs []*http.Response) error {
	select {
	case s.one <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-s.one }()
	return s.Authorizer.AddResponses(ctx, rs)
}

// registrySource reads an image from a registry.
type registrySource struct {
	name, ref string
	place
	resolver remotes.Resolver
}

func (s *registrySource) String() string { return s.name }

func (s *registrySource) Origin() (host, repo string) { return s.host, s.repo }

func (s *registrySource) Close() error { return nil }

func (s *registrySource) sentence(err error) error { return s.place.sentence("pull", err) }

func (s *registrySource) Root(ctx context.Context) (ocispec.Descriptor, error) {
	_, desc, err := s.resolver.Resolve(ctx, s.ref)
	if err != nil {
		return ocispec.Descriptor{}, s.sentence(err)
	}
	return desc, nil
}

func (s *registrySource) Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	f, err := s.resolver.Fetcher(ctx, s.ref)
	if err != nil {
		return nil, s.sentence(err)
	}
	// URLs in a descriptor are the image author's; the registry is the user's choice.
	desc.URLs = nil
	rc, err := f.Fetch(ctx, desc)
	if err != nil {
		return nil, s.sentence(err)
	}
	return rc, nil
}

// registryTarget pushes an image.
type registryTarget struct {
	name, tag string
	place
	hosts    docker.RegistryHosts
	resolver remotes.Resolver
}

func (t *registryTarget) String() string { return t.name }

func (t *registryTarget) Close() error { return nil }

func (t *registryTarget) sentence(err error) error { return t.place.sentence("push", err) }

func (t *registryTarget) repository() string { return t.host + "/" + t.repo }

// Put pushes by digest: the tag comes last.
func (t *registryTarget) Put(ctx context.Context, desc ocispec.Descriptor, open func(context.Context) (io.ReadCloser, error)) (bool, error) {
	return t.push(ctx, t.resolver, t.repository()+"@"+desc.Digest.String(), desc, open)
}

func (t *registryTarget) Finish(ctx context.Context, root ocispec.Descriptor, raw []byte) error {
	// A resolver remembers what it pushed and would not push the same manifest
	// again under its tag.
	_, err := t.push(ctx, newResolver(t.hosts), t.repository()+":"+t.tag, root, func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(raw)), nil
	})
	return err
}

func (t *registryTarget) push(ctx context.Context, resolver remotes.Resolver, ref string, desc ocispec.Descriptor, open func(context.Context) (io.ReadCloser, error)) (_ bool, err error) {
	p, err := resolver.Pusher(ctx, ref)
	if err != nil {
		return false, t.sentence(err)
	}
	// The pusher keeps a goroutine with the request until it is done or cancelled.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, err := p.Push(ctx, desc)
	if errdefs.IsAlreadyExists(err) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("pushing %s to %s: %w", desc.Digest, t.name, t.sentence(err))
	}
	defer func() {
		if cerr := w.Close(); err == nil && cerr != nil && !errors.Is(cerr, io.ErrClosedPipe) {
			err = cerr
		}
	}()
	r := &reopened{ctx: ctx, open: open}
	defer r.Close()
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return false, err
	}
	if err := content.Copy(ctx, w, r, desc.Size, desc.Digest); err != nil && !errdefs.IsAlreadyExists(err) {
		return false, fmt.Errorf("pushing %s to %s: %w", desc.Digest, t.name, t.sentence(err))
	}
	return false, nil
}

// reopened is content that can be read again from any offset, by opening it
// anew. The pusher starts over when the token expires between the request for an
// upload and the upload.
type reopened struct {
	ctx  context.Context // of the one push that the reader serves
	open func(context.Context) (io.ReadCloser, error)
	rc   io.ReadCloser
}

func (r *reopened) Read(p []byte) (int, error) { return r.rc.Read(p) }

// Seek goes to off from the start.
func (r *reopened) Seek(off int64, whence int) (int64, error) {
	if whence != io.SeekStart {
		return 0, errors.ErrUnsupported
	}
	err := r.Close()
	if err != nil {
		return 0, err
	}
	if r.rc, err = r.open(r.ctx); err != nil {
		return 0, err
	}
	return io.CopyN(io.Discard, r.rc, off)
}

// Close closes what is open.
func (r *reopened) Close() error {
	if r.rc == nil {
		return nil
	}
	err := r.rc.Close()
	r.rc = nil
	return err
}

// find implements finder. It asks the hosts that serve pulls, so what it says of
// the target is a guess; the push asks again.
func (t *registryTarget) find(ctx context.Context, desc ocispec.Descriptor, repos []string) (string, bool) {
	if t.has(ctx, t.repository(), desc) {
		return "", true
	}
	for _, r := range repos {
		repo, ok := strings.CutPrefix(r, t.host+"/")
		if ok && repo != t.repo && t.has(ctx, r, desc) {
			return repo, true
		}
	}
	return "", false
}

// has asks a repository for a blob without taking it.
func (t *registryTarget) has(ctx context.Context, repo string, desc ocispec.Descriptor) bool {
	f, err := t.resolver.Fetcher(ctx, repo+"@"+desc.Digest.String())
	if err != nil {
		return false
	}
	byDigest, ok := f.(remotes.FetcherByDigest)
	if !ok {
		return false
	}
	// Only the HEAD is done: the body would come with the first Read.
	rc, got, err := byDigest.FetchByDigest(ctx, desc.Digest, remotes.WithMediaType(desc.MediaType))
	if err != nil {
		return false
	}
	return rc.Close() == nil && got.Size == desc.Size
}

// mountable adds to desc the hint by which the pusher asks the registry to
// mount the blob from the source's repository.
func mountable(desc ocispec.Descriptor, src Source, dst Target) ocispec.Descriptor {
	from, ok := src.(origin)
	to, isRegistry := dst.(*registryTarget)
	if !ok || !isRegistry {
		return desc
	}
	if host, repo := from.Origin(); host == to.host {
		return to.mountFrom(desc, repo)
	}
	return desc
}

// mountFrom adds the hint for a repository of this registry; of none when repo
// is empty.
func (t *registryTarget) mountFrom(desc ocispec.Descriptor, repo string) ocispec.Descriptor {
	if repo == "" {
		return desc
	}
	name := (&url.URL{Host: t.host}).Hostname() // the pusher looks for it without a port
	desc.Annotations = map[string]string{labels.LabelDistributionSource + "." + name: repo}
	return desc
}
