package differ

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	maxProcessors = 8                // one behind the other, so that none goes in circles
	processorTime = 10 * time.Second // how long the end of a killed one is waited for
)

// knows reports whether a layer of that type can be applied, or goes to a stream
// processor first.
func (d *Differ) knows(ctx context.Context, mediaType string) bool {
	return d.processor(ctx, mediaType) != nil || applierFor(mediaType) != nil
}

// processor returns what makes another stream of one of that type, or nil. As in
// containerd, those that are configured come before what is built in.
func (d *Differ) processor(ctx context.Context, mediaType string) diff.StreamProcessorInit {
	for _, handler := range d.cfg.Processors {
		if start, ok := handler(ctx, mediaType); ok {
			return start
		}
	}
	return nil
}

// unpack sends a layer through its stream processors and applies what comes out.
func (d *Differ) unpack(ctx context.Context, u *unpacking, payloads map[string]typeurl.Any) (ocispec.Descriptor, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // kills what is left of processors
	chain, err := d.startProcessors(ctx, u, payloads)
	if err != nil {
		return ocispec.Descriptor{}, errors.Join(err, chain.stop(ctx))
	}
	u.abort = cancel
	u.src = endNoting{u.src, &u.ended}
	apply := applierFor(u.desc.MediaType)
	if apply == nil {
		return ocispec.Descriptor{}, errors.Join(unknownType(u.desc), chain.stop(ctx))
	}
	out, err := apply(ctx, u)
	if err == nil || u.short { // its output has ended, so it says why
		if perr := chain.wait(ctx); perr != nil {
			err = perr
		}
	}
	if serr := chain.stop(ctx); err == nil {
		err = serr
	}
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return out, nil
}

// processors run one behind the other.
type processors []diff.StreamProcessor

// startProcessors replaces the type and the stream of u. What it started is
// returned also with an error.
func (d *Differ) startProcessors(ctx context.Context, u *unpacking, payloads map[string]typeurl.Any) (processors, error) {
	var chain processors
	stream := diff.NewProcessorChain(u.desc.MediaType, u.src)
	for start := d.processor(ctx, u.desc.MediaType); start != nil; start = d.processor(ctx, u.desc.MediaType) {
		if len(chain) == maxProcessors {
			return chain, fmt.Errorf("more than %d stream processors follow each other, the last makes %q", maxProcessors, u.desc.MediaType)
		}
		next, err := start(ctx, stream, payloads)
		if err != nil {
			return chain, fmt.Errorf("starting the stream processor for %q: %w", u.desc.MediaType, err)
		}
		chain, stream = append(chain, next), next
		u.desc.MediaType, u.changed, u.src = next.MediaType(), true, stream
	}
	return chain, nil
}

// wait returns the first failure of a processor whose output has ended.
func (p processors) wait(ctx context.Context) error {
	for _, each := range p {
		w, ok := each.(interface{ Wait(context.Context) error })
		if !ok {
			continue
		}
		if err := w.Wait(ctx); err != nil {
			return fmt.Errorf("the stream processor that makes %q failed: %w", each.MediaType(), err)
		}
	}
	return nil
}

// stop ends processors, the last one first, and waits until none reads the blob
// any more.
func (p processors) stop(ctx context.Context) error {
	var errs []error
	for i := len(p) - 1; i >= 0; i-- {
		if err := p[i].Close(); err != nil && !errors.Is(err, os.ErrProcessDone) && !errors.Is(err, os.ErrClosed) {
			errs = append(errs, fmt.Errorf("ending the stream processor that makes %q: %w", p[i].MediaType(), err))
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), processorTime)
	defer cancel()
	if err := p.wait(ctx); errors.Is(err, context.DeadlineExceeded) {
		log.G(ctx).WithError(err).Error("a stream processor was killed and still runs")
	}
	return errors.Join(errs...)
}
