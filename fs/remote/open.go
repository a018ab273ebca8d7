package remote

import (
	"context"

	"github.com/containerd/stargz-snapshotter/fs/source"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Options choose the decorators of Open. The zero value takes all defaults.
type Options struct {
	// Retry is the retry policy.
	Retry Policy
	// Coalesce plans requests.
	Coalesce Coalescing
	// Limiter bounds requests; nil means no bound beyond Coalesce's.
	Limiter *Limiter
	// Observer is told of every read; may be nil.
	Observer Observer
}

// Open resolves a blob and puts the decorators around it: retries outermost,
// so that a pause holds no slot and a second try asks only for what is
// missing; then the planning of requests; then the limit; the observer sees
// single requests.
func Open(ctx context.Context, r *Resolver, srcs []source.Source, desc ocispec.Descriptor, o Options) (Blob, error) {
	b, err := r.Resolve(ctx, srcs, desc)
	if err != nil {
		return nil, err
	}
	return Decorate(b, srcs[0].Name.Hostname(), o), nil
}

// Decorate puts Open's decorators around a blob of the named registry.
func Decorate(b Blob, registry string, o Options) Blob {
	if o.Observer != nil {
		b = Observe(b, o.Observer)
	}
	if o.Limiter != nil {
		b = Limit(b, o.Limiter, registry)
	}
	return Retry(Coalesce(b, o.Coalesce), o.Retry)
}
