package remote

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"

	"github.com/containerd/stargz-snapshotter/fs/source"
	lru "github.com/hashicorp/golang-lru/v2"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/singleflight"
)

// Config sets a Resolver up. The zero value is useful.
type Config struct {
	// Timeouts bound single requests.
	Timeouts Timeouts
	// MaxRepos bounds the repositories whose hosts are remembered; 0 means 1024.
	MaxRepos int
	// MaxRedirects bounds the remembered addresses of redirected blobs; 0 means 8192.
	MaxRedirects int
	// MaxManifests bounds the remembered manifests; 0 means 64.
	MaxManifests int
}

// Resolver turns sources into blobs. It owns what blobs of one process share:
// host lists with their tokens, redirected addresses, manifests.
//
// Sources with the same image name must come from the same registry
// configuration: the first one's hosts are used for all.
type Resolver struct {
	cfg       Config
	mu        sync.Mutex // guards creation of repos and closed
	closed    bool
	repos     *lru.Cache[string, *repo]
	redirects *lru.Cache[string, string]
	manifests *lru.Cache[string, *ocispec.Manifest]
	flight    singleflight.Group
	ctx       context.Context // bounds shared fetches by the resolver's life
	cancel    context.CancelFunc
	shared    sync.WaitGroup
}

// NewResolver returns a Resolver. Close it to end what it has under way.
func NewResolver(cfg Config) *Resolver {
	cfg.Timeouts = cfg.Timeouts.withDefaults()
	r := &Resolver{cfg: cfg}
	// The only error of New is a size below 1.
	r.repos, _ = lru.New[string, *repo](orDefault(cfg.MaxRepos, 1024))
	r.redirects, _ = lru.New[string, string](orDefault(cfg.MaxRedirects, 8192))
	r.manifests, _ = lru.New[string, *ocispec.Manifest](orDefault(cfg.MaxManifests, 64))
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// Close ends shared fetches and waits for them. Blobs stay readable.
func (r *Resolver) Close() error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	r.shared.Wait()
	return nil
}

// begin registers a shared fetch; false after Close.
func (r *Resolver) begin() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.shared.Add(1)
	}
	return !r.closed
}

func orDefault(v, def int) int {
	if v > 0 {
		return v
	}
	return def
}

// Resolve returns the blob that desc names, or the first source's target when
// desc has no digest. When the size is known it makes no request; otherwise
// one HEAD. Sources that name another blob are left out.
func (r *Resolver) Resolve(ctx context.Context, srcs []source.Source, desc ocispec.Descriptor) (Blob, error) {
	if len(srcs) == 0 {
		return nil, ErrNoSource
	}
	if desc.Digest == "" {
		desc = srcs[0].Target
	}
	if err := checkDigest(desc.Digest); err != nil {
		return nil, err
	}
	if desc.Size < 0 || desc.Size > maxSize {
		return nil, fmt.Errorf("blob %s: size %d is not possible", desc.Digest, desc.Size)
	}
	b := &blob{res: r, digest: desc.Digest, size: desc.Size}
	for _, s := range srcs {
		if s.Target.Digest != "" && s.Target.Digest != desc.Digest {
			continue
		}
		if err := checkName(s.Name); err != nil {
			return nil, err
		}
		b.repos = append(b.repos, r.repo(s))
	}
	if len(b.repos) == 0 {
		return nil, fmt.Errorf("blob %s: %w", desc.Digest, ErrNoSource)
	}
	if b.size == 0 {
		size, err := b.stat(ctx)
		if err != nil {
			return nil, err
		}
		b.size = size
	}
	return b, nil
}

// repo returns the shared state of a source's repository.
func (r *Resolver) repo(s source.Source) *repo {
	r.mu.Lock()
	defer r.mu.Unlock()
	if rp, ok := r.repos.Get(s.Name.Locator); ok {
		return rp
	}
	rp := newRepo(s)
	r.repos.Add(s.Name.Locator, rp)
	return rp
}

// stat asks the hosts in turn for the blob's size.
func (b *blob) stat(ctx context.Context) (int64, error) {
	es, err := b.endpoints()
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, e := range es {
		size, err := e.size(ctx)
		if err == nil {
			return size, nil
		}
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		b.health.penalise(e.id(), err)
		errs = append(errs, err)
	}
	return 0, &ReadError{What: "size of blob " + b.digest.String(), Errs: errs}
}

// size is one HEAD, and where that is refused for another reason than the
// blob's absence (storage that signs URLs for GET only) a GET of one byte.
func (e *endpoint) size(ctx context.Context) (int64, error) {
	reqCtx, w := newWatch(ctx, e.res.cfg.Timeouts)
	defer w.stop()
	resp, err := e.do(reqCtx, http.MethodHead, baseHeader())
	if err == nil {
		_ = resp.Body.Close()
		if resp.ContentLength > 0 && resp.ContentLength <= maxSize {
			return resp.ContentLength, nil
		}
		err = &ProtocolError{URL: redact(resp.Request.URL), Reason: "HEAD tells no length"}
	}
	var status *HTTPError
	if errors.As(err, &status) && (status.Status == http.StatusNotFound || status.Temporary()) {
		return 0, err
	}
	if ctx.Err() != nil {
		return 0, err
	}
	hdr := baseHeader()
	hdr.Set("Range", "bytes=0-0")
	resp, gerr := e.do(reqCtx, http.MethodGet, hdr)
	if gerr != nil {
		return 0, err
	}
	_ = resp.Body.Close()
	if resp.StatusCode == http.StatusPartialContent {
		if cr, perr := parseContentRange(resp.Header.Get("Content-Range")); perr == nil && cr.total > 0 {
			return cr.total, nil
		}
	} else if resp.ContentLength > 0 && resp.ContentLength <= maxSize {
		return resp.ContentLength, nil
	}
	return 0, err
}
