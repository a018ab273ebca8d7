package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/containerd/log"
	"github.com/containerd/stargz-snapshotter/fs/source"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/fs/cache"
	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/format"
	"github.com/lazyerofs/lazyerofs/fs/layer"
	"github.com/lazyerofs/lazyerofs/fs/remote"
)

// labelDiffID is containerd's label for the diff id that the image claims.
const labelDiffID = "containerd.io/snapshot/diff-id"

// metaName is the file of locally written metadata in a layer's directory.
const metaName = "meta.erofs"

// closeTimeout bounds how long a layer that nobody uses takes to reach the disk.
const closeTimeout = 30 * time.Second

// shared is one layer for all its mounts.
type shared struct {
	id   digest.Digest
	lock chan struct{} // held while the layer is opened or closed
	refs int           // mounts and callers; guarded by FS.mu

	layer *layer.Layer       // nil until opened; guarded by lock
	desc  ocispec.Descriptor // as which it was opened; guarded by lock
	bad   atomic.Pointer[MountError]
}

// verdict is why the layer may not be used by new containers, or nil.
func (s *shared) verdict() error {
	if bad := s.bad.Load(); bad != nil {
		return bad
	}
	return nil
}

// layerID is the name that package layer gives the layer of a blob.
func layerID(blob digest.Digest) string {
	id := blob.Algorithm().String() + "-" + blob.Encoded()
	return id[:min(len(id), 100)]
}

// acquire returns the open layer of srcs with one more reference.
func (f *FS) acquire(ctx context.Context, srcs []source.Source, labels map[string]string) (*shared, error) {
	id := srcs[0].Target.Digest
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return nil, ErrClosed
	}
	s := f.layers[id]
	if s == nil {
		s = &shared{id: id, lock: make(chan struct{}, 1)}
		f.layers[id] = s
	}
	s.refs++
	f.mu.Unlock()

	select {
	case s.lock <- struct{}{}:
	case <-ctx.Done():
		f.mu.Lock()
		defer f.mu.Unlock()
		if !f.closed { // Close waits for tasks, and closes what is left itself
			f.tasks.Go(func() { f.release(s) })
		}
		return nil, context.Cause(ctx)
	}
	err := f.ready(ctx, s, srcs, labels)
	<-s.lock
	if err != nil {
		f.release(s)
		return nil, err
	}
	return s, nil
}

// ready opens s unless it is open, and checks that it is what labels claim. The
// lock of s is held.
func (f *FS) ready(ctx context.Context, s *shared, srcs []source.Source, labels map[string]string) error {
	if err := s.verdict(); err != nil {
		return err
	}
	if s.layer != nil {
		return f.same(ctx, s, srcs, labels)
	}
	return f.open(ctx, s, srcs, labels)
}

// release drops one reference and closes the layer with the last.
func (f *FS) release(s *shared) {
	s.lock <- struct{}{} // holders of the lock have a deadline or close, which has one
	defer func() { <-s.lock }()
	f.mu.Lock()
	last := s.refs == 1
	f.mu.Unlock()
	if last {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(f.ctx), closeTimeout)
		defer cancel()
		if err := s.close(ctx); err != nil {
			log.G(f.ctx).WithError(err).Warn("closing a layer that nobody uses")
		}
	}
	f.drop(s)
}

// drop forgets a reference whose layer is closed or has other users.
func (f *FS) drop(s *shared) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s.refs--; s.refs == 0 && f.layers[s.id] == s {
		delete(f.layers, s.id)
	}
}

// close closes the layer. The lock of s is held.
func (s *shared) close(ctx context.Context) error {
	if s.layer == nil {
		return nil
	}
	l := s.layer
	s.layer = nil
	return l.Close(ctx)
}

// same checks that a claim about an open layer is the claim it was opened with.
func (f *FS) same(ctx context.Context, s *shared, srcs []source.Source, labels map[string]string) error {
	desc, err := f.describe(ctx, srcs, labels)
	if err != nil {
		return err
	}
	return sameContent(s.desc, desc)
}

// sameContent says why two descriptors of one blob do not name the same content.
// What is local belongs to have, which was checked against its own image only.
func sameContent(have, want ocispec.Descriptor) error {
	if have.Size != want.Size && want.Size > 0 {
		return fail(ReasonIdentity, "layer %s has %d bytes here and %d in the image", have.Digest, have.Size, want.Size)
	}
	if have.MediaType != want.MediaType && want.MediaType != "" {
		return fail(ReasonIdentity, "layer %s is %q here and %q in the image", have.Digest, have.MediaType, want.MediaType)
	}
	for _, key := range []string{chunk.AnnotationIndexDigest, chunk.AnnotationUncompressedDigest} {
		if have.Annotations[key] != want.Annotations[key] {
			return fail(ReasonIdentity, "layer %s is here with another %s than the image gives", have.Digest, key)
		}
	}
	return nil
}

// describe returns the layer's descriptor, with the claim that is checked once
// the layer is complete filled in from what containerd files it under.
func (f *FS) describe(ctx context.Context, srcs []source.Source, labels map[string]string) (ocispec.Descriptor, error) {
	desc, err := f.c.Resolver.Describe(ctx, srcs[0])
	if err != nil {
		return desc, fmt.Errorf("describing layer %s: %w", srcs[0].Target.Digest, err)
	}
	return claim(desc, labels[labelDiffID])
}

// claim ties desc to the diff id that the image gives, when it gives one.
func claim(desc ocispec.Descriptor, diffID string) (ocispec.Descriptor, error) {
	if diffID == "" {
		return desc, nil
	}
	claimed, err := digest.Parse(diffID)
	if err != nil {
		return desc, fail(ReasonIdentity, "layer %s: the image's diff id %q is malformed", desc.Digest, diffID)
	}
	switch desc.MediaType {
	case chunk.MediaTypeLayer, chunk.MediaTypeDraftLayer:
		if claimed != desc.Digest {
			return desc, fail(ReasonIdentity, "layer %s is stored as it is, but the image calls it %s", desc.Digest, claimed)
		}
	case chunk.MediaTypeLayerZstd, chunk.MediaTypeDraftLayerZstd:
		have := desc.Annotations[chunk.AnnotationUncompressedDigest]
		if have != "" && have != claimed.String() {
			return desc, fail(ReasonIdentity, "layer %s decompresses to %s by its annotation, but the image calls it %s", desc.Digest, have, claimed)
		}
		a := map[string]string{chunk.AnnotationUncompressedDigest: claimed.String()}
		for k, v := range desc.Annotations {
			if k != chunk.LabelUncompressedDigest { // the draft's key is the one that counts
				a[k] = v
			}
		}
		a[chunk.AnnotationUncompressedDigest] = claimed.String()
		desc.Annotations = a
	}
	return desc, nil
}

// open opens the layer of srcs, from its record when there is one. The lock of s
// is held.
func (f *FS) open(ctx context.Context, s *shared, srcs []source.Source, labels map[string]string) error {
	dir, err := f.c.Store.Dir(s.id)
	if err != nil {
		return &MountError{Reason: ReasonSource, Err: err}
	}
	rec, err := cache.LoadRecord(dir)
	switch {
	case err == nil:
		want, err := claim(srcs[0].Target, labels[labelDiffID])
		if err == nil && described(want) {
			err = sameContent(rec.Descriptor, want)
		}
		if err != nil {
			return err
		}
		err = f.reopen(ctx, s, srcs, dir, rec)
		if !damaged(err) {
			return err
		}
		fallthrough
	default:
		if !errors.Is(err, os.ErrNotExist) {
			log.G(ctx).WithError(err).WithField("layer", s.id).Warn("fetching the description of a layer again")
		}
	}
	desc, err := f.describe(ctx, srcs, labels)
	if err != nil {
		return err
	}
	for _, form := range f.c.Formats {
		if form.Match(desc) {
			return f.first(ctx, s, srcs, dir, desc, form)
		}
	}
	return fail(ReasonFormat, "layer %s of type %q is in no format that can be loaded lazily", desc.Digest, desc.MediaType)
}

// damaged reports whether err means that what was recorded of a layer cannot be
// used, so that it is to be fetched anew.
func damaged(err error) bool {
	var corrupt *chunk.CorruptError
	return errors.As(err, &corrupt) || errors.Is(err, os.ErrNotExist) || errors.Is(err, format.ErrNotRecorded)
}

// described reports whether labels alone say which content is meant.
func described(desc ocispec.Descriptor) bool {
	return desc.Annotations[chunk.AnnotationIndexDigest] != ""
}

// first opens a layer that this node sees for the first time and records what the
// next process needs.
func (f *FS) first(ctx context.Context, s *shared, srcs []source.Source, dir string, desc ocispec.Descriptor, form format.Format) error {
	blob, err := remote.Open(ctx, f.c.Resolver, srcs, desc, f.c.Remote)
	if err != nil {
		return fmt.Errorf("finding layer %s: %w", desc.Digest, err)
	}
	desc.Size = blob.Size()
	tape := format.Record(blob)
	plan, err := form.Open(ctx, tape, desc)
	if err != nil {
		return fmt.Errorf("reading the index of layer %s: %w", desc.Digest, err)
	}
	return f.assemble(s, dir, desc, plan, blob, func() error {
		if err := cache.SaveIndex(dir, tape.Bytes()); err != nil {
			return err
		}
		return cache.SaveRecord(dir, cache.Record{
			Descriptor: desc, Format: form.Name(), Size: plan.Data.Size(), Refs: refs(srcs),
		})
	})
}

func refs(srcs []source.Source) []string {
	out := make([]string, len(srcs))
	for i, s := range srcs {
		out[i] = s.Name.String()
	}
	return out
}

// reopen opens a layer from its record: no request is made.
func (f *FS) reopen(ctx context.Context, s *shared, srcs []source.Source, dir string, rec cache.Record) error {
	blob, err := remote.Open(ctx, f.c.Resolver, srcs, rec.Descriptor, f.c.Remote)
	if err != nil {
		return fmt.Errorf("finding layer %s: %w", s.id, err)
	}
	tape, err := cache.LoadIndex(dir)
	if err != nil {
		return fmt.Errorf("reading the recorded index of layer %s: %w", s.id, err)
	}
	replay, err := format.Replay(blob, tape)
	if err != nil {
		return fmt.Errorf("reading the recorded index of layer %s: %w", s.id, err)
	}
	for _, form := range f.c.Formats {
		if form.Name() != rec.Format {
			continue
		}
		plan, err := form.Open(ctx, replay, rec.Descriptor)
		if err != nil {
			return fmt.Errorf("reading the recorded index of layer %s: %w", s.id, err)
		}
		return f.assemble(s, dir, rec.Descriptor, plan, blob, nil)
	}
	return fail(ReasonFormat, "layer %s was recorded in the format %q, which this build does not know", s.id, rec.Format)
}

// assemble makes the layer from its parts. save, if any, runs once its directory
// exists.
func (f *FS) assemble(s *shared, dir string, desc ocispec.Descriptor, plan *format.Plan, blob remote.Blob, save func() error) error {
	o := cache.Options{ID: s.id, Map: plan.Data}
	if f.c.Writer != nil {
		o.Writer = f.c.Writer(layerID(s.id))
	}
	file, err := f.c.Store.OpenFile(o)
	if err != nil {
		return fmt.Errorf("opening the data file of layer %s: %w", s.id, err)
	}
	undo := func(err error) error {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		return errors.Join(err, file.Close(ctx))
	}
	if save != nil {
		if err := save(); err != nil {
			return undo(fmt.Errorf("recording layer %s: %w", s.id, err))
		}
	}
	var meta *os.File
	if plan.Meta != nil {
		if meta, err = saveMeta(filepath.Join(dir, metaName), plan); err != nil {
			return undo(err)
		}
	}
	l, err := layer.New(layer.Config{
		Plan: plan, Blob: blob, File: file, Meta: meta, Slots: f.c.Slots, Trace: f.c.Trace,
		Finished: func(err error) { f.finished(s, err) },
	})
	if err != nil {
		if meta != nil {
			err = errors.Join(err, meta.Close())
		}
		return undo(err)
	}
	s.layer, s.desc = l, desc
	return nil
}

// finished hears that a layer is complete, or that as a whole it is not what its
// descriptor says.
func (f *FS) finished(s *shared, err error) {
	if err == nil {
		log.G(f.ctx).WithField("layer", s.id).Info("layer is complete")
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.condemn(s, err)
}

// saveMeta writes metadata that was made on this node beside the data file.
func saveMeta(name string, plan *format.Plan) (*os.File, error) {
	w, err := os.CreateTemp(filepath.Dir(name), metaName+".new-*")
	if err != nil {
		return nil, fmt.Errorf("writing local metadata: %w", err)
	}
	_, err = io.Copy(w, io.NewSectionReader(plan.Meta, 0, plan.MetaSize))
	if err == nil {
		err = w.Sync()
	}
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(w.Name(), name)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("writing local metadata: %w", err), os.Remove(w.Name()))
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("opening local metadata: %w", err)
	}
	return f, nil
}
