package differ

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	saveBuffer  = 1 << 20 // one message to containerd and its answer for each
	cleanUpTime = 10 * time.Second
)

// save writes a layer to the content store, in the namespace of ctx and under a
// lease. After an error nothing of it is left.
func (d *Differ) save(ctx context.Context, cfg diff.Config, write blobWriter) (_ ocispec.Descriptor, err error) {
	ctx, lease, err := d.lease(ctx)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer func() {
		if err != nil {
			d.release(ctx, lease)
		}
	}()
	ours := cfg.Reference == ""
	if ours {
		cfg.Reference = "lazyerofs-diff-" + rand.Text()
	}
	cw, err := d.store.Writer(ctx, content.WithRef(cfg.Reference),
		content.WithDescriptor(ocispec.Descriptor{MediaType: cfg.MediaType}))
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("opening the content store: %w", err)
	}
	desc, err := d.fill(ctx, cw, cfg, write, lease)
	if cerr := cw.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("closing the layer in the content store: %w", cerr)
	}
	if err != nil && ours {
		d.abort(ctx, cfg.Reference)
	}
	return desc, err
}

// fill writes and commits the blob.
func (d *Differ) fill(ctx context.Context, cw content.Writer, cfg diff.Config, write blobWriter, lease *leases.Lease) (ocispec.Descriptor, error) {
	if err := cw.Truncate(0); err != nil { // an earlier try under the caller's reference
		return ocispec.Descriptor{}, fmt.Errorf("emptying the layer in the content store: %w", err)
	}
	bw := bufio.NewWriterSize(cw, saveBuffer)
	got, err := write(ctx, bw)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if err := bw.Flush(); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("writing the layer to the content store: %w", err)
	}
	marks := make(map[string]string)
	maps.Copy(marks, got.annotations)
	maps.Copy(marks, cfg.Labels)
	marks[labels.LabelUncompressed] = got.diffID.String()

	dgst := cw.Digest()
	err = cw.Commit(ctx, 0, dgst, content.WithLabels(marks))
	if errdefs.IsAlreadyExists(err) {
		err = d.keep(ctx, content.Info{Digest: dgst, Labels: marks}, lease)
	}
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("committing the layer to the content store: %w", err)
	}
	info, err := d.store.Info(ctx, dgst)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("looking at the layer in the content store: %w", err)
	}
	return ocispec.Descriptor{
		MediaType: cfg.MediaType, Digest: dgst, Size: info.Size, Annotations: got.annotations,
	}, nil
}

// keep makes a blob that was there already the result: it gets the labels, and
// the lease, which the store gives only to what it takes in.
func (d *Differ) keep(ctx context.Context, info content.Info, lease *leases.Lease) error {
	var fields []string
	for _, k := range slices.Sorted(maps.Keys(info.Labels)) {
		fields = append(fields, "labels."+k)
	}
	if _, err := d.store.Update(ctx, info, fields...); err != nil {
		return fmt.Errorf("labelling it: %w", err)
	}
	if lease == nil {
		return nil
	}
	err := d.cfg.Leases.AddResource(ctx, *lease, leases.Resource{ID: info.Digest.String(), Type: "content"})
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("adding it to a lease: %w", err)
	}
	return nil
}

// lease returns a context whose writes are kept: by the lease of the caller if it
// came along, or else by a new one, which is returned.
func (d *Differ) lease(ctx context.Context) (context.Context, *leases.Lease, error) {
	if id, ok := leases.FromContext(ctx); ok && id != "" {
		return leases.WithLease(ctx, id), nil, nil
	}
	if d.cfg.Leases == nil {
		return ctx, nil, nil
	}
	l, err := d.cfg.Leases.Create(ctx, leases.WithRandomID(), leases.WithExpiration(leaseTime))
	if err != nil {
		return ctx, nil, fmt.Errorf("making a lease for the layer: %w", err)
	}
	return leases.WithLease(ctx, l.ID), &l, nil
}

// release ends a lease that keeps nothing. An error costs an hour of waiting.
func (d *Differ) release(ctx context.Context, lease *leases.Lease) {
	if lease == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTime)
	defer cancel()
	if err := d.cfg.Leases.Delete(ctx, *lease); err != nil {
		log.G(ctx).WithError(err).WithField("lease", lease.ID).Warn("cannot delete the lease of a layer that was not written")
	}
}

// abort drops what was written of a layer.
func (d *Differ) abort(ctx context.Context, ref string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTime)
	defer cancel()
	if err := d.store.Abort(ctx, ref); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		log.G(ctx).WithError(err).WithField("ref", ref).Warn("cannot drop a layer that was not finished")
	}
}
